// SPDX-License-Identifier: GPL-2.0
/* image: what a cut leaves, put on a device or into a file. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model.h"

/* What is durable before a cut, in the memory that had it during the recording. */
uint64_t applied;

static void advance(const struct cut *to)
{
	if (applied > to->changed) {
		make_equal(durable, base, size);
		applied = 0;
	}
	for (; applied < to->changed; applied++)
		memcpy(durable + (uint64_t)changes[applied].line * LINE, changes[applied].data, LINE);
}

/* Exchanges what survived with what is durable; once more undoes it. */
static void exchange(const struct cut *of)
{
	uint64_t i;

	for (i = 0; i < of->survived; i++) {
		struct survivor *survivor = &survivors[of->survivors + i];
		uint8_t *at = durable + (uint64_t)survivor->line * LINE, data[LINE];

		memcpy(data, at, LINE);
		memcpy(at, survivor->data, LINE);
		memcpy(survivor->data, data, LINE);
	}
}

int64_t load(struct powercut *request)
{
	const struct cut *this = &cuts[request->a[0]];
	uint8_t *to = devices[request->a[1]].memory;

	if (devices[request->a[1]].size != size)
		fail("the devices are not of one size");
	advance(this);
	exchange(this);
	make_equal(to, durable, size);
	exchange(this);
	memcpy(request->events, this->events, sizeof(this->events));
	request->kind = this->kind;
	request->moment = this->moment;
	return 0;
}

int64_t peek(const struct powercut *request)
{
	const struct cut *this = &cuts[request->a[0]];
	const uint64_t offset = request->a[1] - physical;
	const uint8_t *line = base + offset / LINE * LINE;
	int64_t value;
	uint64_t i;

	/* The recording goes on, so what is durable now has to stay. */
	for (i = 0; i < this->changed; i++)
		if (changes[i].line == offset / LINE)
			line = changes[i].data;
	for (i = 0; i < this->survived; i++)
		if (survivors[this->survivors + i].line == offset / LINE)
			line = survivors[this->survivors + i].data;
	memcpy(&value, line + offset % LINE, sizeof(value));
	return value;
}

/* An image as a file: each page that is not zero, behind its place. */
static void name_of(uint64_t serial, char *to, size_t length)
{
	snprintf(to, length, "image-%" PRIu64, serial);
}

int64_t keep(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	const struct cut *this = &cuts[request->a[0]];
	char name[40];
	uint64_t at;
	FILE *to;

	name_of(request->a[1], name, sizeof(name));
	to = fopen(name, "w");
	if (!to)
		return -1;
	advance(this);
	exchange(this);
	for (at = 0; at < size; at += PAGE) {
		if (!memcmp(durable + at, zero, PAGE))
			continue;
		fwrite(&at, sizeof(at), 1, to);
		fwrite(durable + at, PAGE, 1, to);
	}
	exchange(this);
	return fclose(to) ? -1 : 0;
}

int64_t restore(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	uint8_t *to = devices[request->a[1]].memory;
	char name[40];
	uint64_t at;
	FILE *from;

	name_of(request->a[0], name, sizeof(name));
	from = fopen(name, "r");
	if (!from)
		return -1;
	for (at = 0; at < size; at += PAGE)
		make_equal(to + at, zero, PAGE);
	while (fread(&at, sizeof(at), 1, from) == 1)
		if (at > size - PAGE || fread(to + at, PAGE, 1, from) != 1)
			break;
	fclose(from);
	return 0;
}

/* The device as it is now, where the checker of the host finds it. */
int64_t copy(const struct powercut *request)
{
	static const uint8_t zero[PAGE];
	const uint8_t *from = devices[request->a[0]].memory;
	uint64_t at, end;
	char name[40];
	bool bad;
	int to;

	snprintf(name, sizeof(name), "copy-%" PRIu64, request->a[1]);
	to = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
	if (to < 0)
		return -1;
	bad = ftruncate(to, size);
	for (at = 0; at < size && !bad; at = end + PAGE) {
		for (end = at; end < size && memcmp(from + end, zero, PAGE); end += PAGE)
			;
		bad = end > at && pwrite(to, from + at, end - at, at) != (ssize_t)(end - at);
	}
	return close(to) || bad ? -1 : 0;
}

int64_t copy_state(const struct powercut *request)
{
	char name[40];

	snprintf(name, sizeof(name), "copy-%" PRIu64, request->a[0]);
	if (!access(name, F_OK))
		return POWERCUT_COPY_WAITS;
	snprintf(name, sizeof(name), "damaged-%" PRIu64, request->a[0]);
	return access(name, F_OK) ? POWERCUT_COPY_IS_GOOD : POWERCUT_COPY_IS_DAMAGED;
}
