/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the parts of the model share: what is recorded (model.c), what a cut leaves (image.c), and what has
 * the emulation tell of it (plugin.c).
 */
#ifndef RDAX_POWERCUT_MODEL_H
#define RDAX_POWERCUT_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "insn.h"
#include "powercut.h"

/* Of the library's own use, so that nothing stands between its parts. */
#pragma GCC visibility push(hidden)

#define LINE 64
#define PAGE 4096
#define DEVICES 4
#define PROCESSORS 16

void __attribute__((noreturn)) fail(const char *what);

/*
 * An array that grows. Address space is taken for as much as it may ever hold, so that it never
 * moves.
 */
#define ROOM (64ULL << 30)
void *room(uint64_t bytes);
void make_equal(uint8_t *to, const uint8_t *from, uint64_t bytes);

struct device {
	uint64_t physical;
	uint64_t size;
	uint8_t *memory;
};
extern struct device devices[DEVICES];

/* The device that is recorded: what the processors see, what is durable, and what was at first. */
extern uint64_t physical, size;
extern uint8_t *seen, *durable, *base;

/* What became durable, in order: the line as it was then. */
struct change {
	uint32_t line;
	uint8_t data[LINE];
};
extern struct change *changes;
extern uint64_t changed;

/* What will be durable after the next fence of a processor: these bytes of a line. */
struct writeback {
	uint32_t line;
	uint64_t time;
	uint64_t bytes;
	uint8_t data[LINE];
};
struct processor {
	struct writeback *pending;
	uint64_t count;
	/* Stores that the emulation has told of, and all that follows from them was done. */
	uint64_t told;
	/* POWERCUT_LATE */
	uint64_t late;
	struct qemu_plugin_register *registers[REGISTERS];
};
extern struct processor processors[PROCESSORS];

struct survivor {
	uint32_t line;
	uint8_t data[LINE];
};
struct loss {
	uint32_t line;
	uint64_t pc;
};
struct cut {
	/* How many changes came before it, */
	uint64_t changed;
	/* what survived of lines that were not durable, */
	uint64_t survivors, survived;
	/* and what was lost. */
	uint64_t losses, lost;
	uint64_t events[POWERCUT_THREADS];
	enum powercut_kind kind;
	enum powercut_moment moment;
};
extern struct survivor *survivors;
extern struct loss *losses;
extern struct cut *cuts;
extern uint64_t cut_count;

extern uint64_t stores, writebacks, fences;

enum recording { QUIET, BEGINNING, RECORDING };
extern enum recording state;
extern uint64_t rate;

/* Held for whatever the recording is made of. */
extern pthread_mutex_t lock;

/* model.c */
void make_rooms(void);
int64_t set_device(const struct powercut *request);
void prepare_recording(uint64_t seed, uint64_t often, bool all_durable);
void begin_recording(void);
uint64_t unseen(void);
void cut(enum powercut_kind kind, enum powercut_moment moment);
void event(uint64_t thread, uint64_t count);
void stored(unsigned int vcpu, uint64_t offset, unsigned int bytes, uint64_t pc, bool around_cache);
void write_back(unsigned int vcpu, uint64_t offset);
void fence(unsigned int vcpu, void *data);

/* image.c */
extern uint64_t applied;
int64_t load(struct powercut *request);
int64_t peek(const struct powercut *request);
int64_t keep(const struct powercut *request);
int64_t restore(const struct powercut *request);
int64_t copy(const struct powercut *request);
int64_t copy_state(const struct powercut *request);

/* plugin.c */
void *guest_memory(uint64_t at, uint64_t bytes);

#pragma GCC visibility pop

#endif /* RDAX_POWERCUT_MODEL_H */
