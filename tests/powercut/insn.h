/* SPDX-License-Identifier: GPL-2.0 */
/* What the model asks of an instruction: whether it is a store around the cache, a write-back or a fence. */
#ifndef RDAX_POWERCUT_INSN_H
#define RDAX_POWERCUT_INSN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Those that an address is made of: 16, and the bases of two segments. */
#define FS_BASE 16
#define GS_BASE 17
#define REGISTERS 18

/* An address as an instruction has it. */
struct operand {
	signed char base, index, segment;	/* registers, -1: none */
	bool narrow;			/* 32 bits */
	unsigned char scale;
	int64_t displacement;		/* with the address of the next instruction where it counts */
};

/* What an instruction is, as far as it matters here. */
struct decoded {
	bool locked, repeated, operand_size, address_size;
	unsigned char segment, rex, opcode_map, opcode, modrm;
	/* From the ModRM byte on. */
	const unsigned char *rest;
	size_t left;
	bool vex;
};

bool decode(const unsigned char *at, size_t length, struct decoded *to);
bool goes_around_cache(const struct decoded *insn);
bool is_fence(const struct decoded *insn);
bool is_write_back(const struct decoded *insn);
struct operand *operand_of(const struct decoded *insn, uint64_t next);

#endif /* RDAX_POWERCUT_INSN_H */
