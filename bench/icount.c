// SPDX-License-Identifier: GPL-2.0
/*
 * icount: plugin for QEMU's emulation that counts how often each instruction of a guest is executed
 * while a row of the benchmark is timed.
 *
 * The program (bench.c) executes a no-op that does nothing but be recognised here where a row begins
 * and ends, and another one if the row is wanted. Then the counts are left in the current directory,
 * in files "counts-0", "counts-1" and so on: an address, a count and the instruction's bytes a line.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mark.h"
#include "plugin.h"

int qemu_plugin_version = 4;

/* The emulator makes room for several processors in each scoreboard, so these are of some size. */
#define CHUNK 65536
#define CHUNKS 256
/* Never more than half full. */
#define BUCKETS (2 * CHUNK * CHUNKS)

struct place {
	uint64_t address;
	uint64_t count;		/* when the row ended */
	unsigned char size;
	unsigned char bytes[15];
};

static struct {
	struct qemu_plugin_scoreboard *score;
	struct place *places;
} chunks[CHUNKS];

static uint32_t used;
/* By address, where it is in the chunks, plus one. */
static uint32_t *buckets;

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "icount: %s\n", what);
	exit(1);
}

static struct place *place(uint32_t i)
{
	return &chunks[i / CHUNK].places[i % CHUNK];
}

static uint32_t place_of(uint64_t address)
{
	uint32_t bucket = (address * 0x9e3779b97f4a7c15ULL) >> 32 & (BUCKETS - 1), i;

	while ((i = buckets[bucket])) {
		if (place(i - 1)->address == address)
			return i - 1;
		bucket = (bucket + 1) & (BUCKETS - 1);
	}
	i = used++;
	if (i % CHUNK == 0) {
		if (i / CHUNK == CHUNKS)
			fail("too many instructions");
		chunks[i / CHUNK].places = calloc(CHUNK, sizeof(struct place));
		chunks[i / CHUNK].score = qemu_plugin_scoreboard_new(CHUNK * sizeof(uint64_t));
		if (!chunks[i / CHUNK].places || !chunks[i / CHUNK].score)
			fail("no memory");
	}
	buckets[bucket] = i + 1;
	place(i)->address = address;
	return i;
}

static void begin(unsigned int vcpu, void *data)
{
	uint32_t i;

	(void)data;
	for (i = 0; i * CHUNK < used; i++)
		memset(qemu_plugin_scoreboard_find(chunks[i].score, vcpu), 0,
		       CHUNK * sizeof(uint64_t));
}

static void end(unsigned int vcpu, void *data)
{
	uint64_t *counts = NULL;
	uint32_t i;

	(void)data;
	for (i = 0; i < used; i++) {
		if (i % CHUNK == 0)
			counts = qemu_plugin_scoreboard_find(chunks[i / CHUNK].score, vcpu);
		place(i)->count = counts[i % CHUNK];
	}
}

static void keep(unsigned int vcpu, void *data)
{
	static unsigned int serial;
	char name[32];
	uint32_t i, j;
	FILE *to;

	(void)vcpu;
	(void)data;
	snprintf(name, sizeof(name), "counts-%u", serial++);
	to = fopen(name, "w");
	if (!to)
		fail("cannot make a file for the counts");
	for (i = 0; i < used; i++) {
		const struct place *at = place(i);

		if (!at->count)
			continue;
		fprintf(to, "%" PRIx64 " %" PRIu64 " ", at->address, at->count);
		for (j = 0; j < at->size; j++)
			fprintf(to, "%02x", at->bytes[j]);
		fputc('\n', to);
	}
	if (fclose(to))
		fail("cannot write the counts");
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	static const char nop[] = MARK_OPCODE;
	const size_t length = sizeof(nop) - 1;
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint32_t serial = place_of(qemu_plugin_insn_vaddr(insn)), value;
		struct place *at = place(serial);
		void (*call)(unsigned int vcpu, void *data) = NULL;
		struct counter counter = {
			.score = chunks[serial / CHUNK].score,
			.offset = serial % CHUNK * sizeof(uint64_t),
		};

		/* Code changes, and what counts is what is there last. */
		at->size = qemu_plugin_insn_size(insn);
		if (at->size > sizeof(at->bytes))
			at->size = sizeof(at->bytes);
		qemu_plugin_insn_data(insn, at->bytes, at->size);
		if (at->size == length + sizeof(value) && !memcmp(at->bytes, nop, length)) {
			memcpy(&value, at->bytes + length, sizeof(value));
			if (value == MARK_BEGIN)
				call = begin;
			else if (value == MARK_END)
				call = end;
			else if (value == MARK_KEEP)
				call = keep;
		}
		if (call)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, call, QEMU_PLUGIN_CB_NO_REGS,
							       NULL);
		else
			qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn,
				QEMU_PLUGIN_INLINE_ADD_U64, counter, 1);
	}
}

int qemu_plugin_install(uint64_t id, const struct machine *machine, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (!machine->system_emulation || machine->max_vcpus != 1) {
		fprintf(stderr, "icount: for machines of one processor\n");
		return -1;
	}
	buckets = calloc(BUCKETS, sizeof(*buckets));
	if (!buckets) {
		fprintf(stderr, "icount: no memory\n");
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
