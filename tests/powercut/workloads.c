// SPDX-License-Identifier: GPL-2.0
/* workloads: which there are, what was done in one, and what all of them ask the model (model.c). */
#include <stdlib.h>
#include <string.h>

#include "workload.h"

struct op *ops;
uint32_t op_count;
uint8_t salt;

static const struct {
	const char *name;
	const struct workload workload;
} workloads[] = {
	/* Stores through mappings by pages and by 2 MiB, and fsync or msync of parts, also by who opens a file anew. */
	{ "map", { 3, 3, 4 << 20, 4 << 20, {
		[OP_STORE] = 12, [OP_WRITE] = 1, [OP_FSYNC] = 4, [OP_FDATASYNC] = 1,
		[OP_MSYNC] = 4, [OP_SYNCFS] = 1, [OP_REOPEN] = 2, [OP_UMOUNT] = 1 }, false, false } },
	/* What changes a file's blocks, beside dirty mappings. */
	{ "layout", { 3, 3, 3 << 20, 4 << 20, {
		[OP_STORE] = 12, [OP_WRITE] = 2, [OP_FSYNC] = 4, [OP_MSYNC] = 2, [OP_TRUNCATE] = 4,
		[OP_PUNCH] = 2, [OP_ZERO] = 2, [OP_COLLAPSE] = 2, [OP_INSERT] = 2, [OP_REOPEN] = 2 },
		false, false } },
	/* The same with entries of 2 MiB, and files that share them where the filesystem can. */
	{ "large", { 3, 2, 4 << 20, 4 << 20, {
		[OP_STORE] = 14, [OP_WRITE] = 1, [OP_FSYNC] = 4, [OP_MSYNC] = 3, [OP_TRUNCATE] = 3,
		[OP_PUNCH] = 1, [OP_ZERO] = 2, [OP_COLLAPSE] = 2, [OP_INSERT] = 3, [OP_CLONE] = 3 },
		false, true } },
	/* Files that share blocks. */
	{ "reflink", { 4, 2, 2 << 20, 2 << 20, {
		[OP_STORE] = 10, [OP_WRITE] = 4, [OP_FSYNC] = 5, [OP_MSYNC] = 2, [OP_CLONE] = 4,
		[OP_PUNCH] = 1, [OP_TRUNCATE] = 1, [OP_WRITE_SYNC] = 1, [OP_STORE_SYNC] = 3 },
		false, false } },
	/* The same, and copies are made of shared blocks without a store. */
	{ "unshare", { 4, 2, 2 << 20, 2 << 20, {
		[OP_STORE] = 8, [OP_WRITE] = 2, [OP_FSYNC] = 5, [OP_MSYNC] = 2, [OP_CLONE] = 4,
		[OP_TRUNCATE] = 1, [OP_UNSHARE] = 6, [OP_STORE_SYNC] = 3 }, false, false } },
	/* Programs that write back by themselves, beside others that do not. */
	{ "mapsync", { 3, 2, 2 << 20, 4 << 20, {
		[OP_STORE_SYNC] = 12, [OP_STORE] = 4, [OP_FSYNC] = 1, [OP_PUNCH] = 2,
		[OP_TRUNCATE] = 3, [OP_WRITE] = 1, [OP_COLLAPSE] = 1, [OP_INSERT] = 1 }, false, false } },
	/* Synchronous writes of all kinds. */
	{ "dsync", { 3, 2, 2 << 20, 4 << 20, {
		[OP_WRITE_SYNC] = 12, [OP_STORE] = 4, [OP_TRUNCATE] = 2, [OP_PUNCH] = 1,
		[OP_FSYNC] = 2 }, false, false } },
	/* A new file in the place of an old one. */
	{ "rename", { 3, 2, 1 << 20, 2 << 20, {
		[OP_RENAME] = 10, [OP_STORE] = 4, [OP_FSYNC] = 2, [OP_TRUNCATE] = 1 }, true, false } },
};

const struct workload *find_workload(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
		if (!strcmp(workloads[i].name, name))
			return &workloads[i].workload;
	return NULL;
}

/* One for each thread. */
static __thread struct powercut request;

int64_t powercut_ask(uint64_t op, uint64_t a, uint64_t b, uint64_t c)
{
	request.op = op;
	request.a[0] = a;
	request.a[1] = b;
	request.a[2] = c;
	return powercut(&request);
}

/* What the last request was answered besides. */
const struct powercut *powercut_answer(void)
{
	return &request;
}

/* The salt of what follows. */
void powercut_salt(unsigned int to)
{
	salt = to;
}

/* What was done, for whoever keeps it, in bytes; and the same once more from there. */
size_t workload_ops(const void **at)
{
	*at = ops;
	/* The last one may not have been over when the cut came. */
	return op_count * sizeof(*ops);
}

bool make_room(void)
{
	if (!ops)
		ops = calloc(MOST_OPS, sizeof(*ops));
	return ops;
}

void workload_ops_are(const void *from, size_t bytes)
{
	if (!make_room() || bytes > MOST_OPS * sizeof(*ops))
		abort();
	memcpy(ops, from, bytes);
	op_count = bytes / sizeof(*ops);
}
