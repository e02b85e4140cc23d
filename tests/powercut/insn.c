// SPDX-License-Identifier: GPL-2.0
/* insn: reads instructions of the processor, as far as they matter to the model. */
#include <stdlib.h>
#include <string.h>

#include "insn.h"
#include "model.h"

bool decode(const unsigned char *at, size_t length, struct decoded *to)
{
	const unsigned char *end = at + length;

	memset(to, 0, sizeof(*to));
	for (; at < end; at++) {
		if (*at == 0xf0)
			to->locked = true;
		else if (*at == 0x66)
			to->operand_size = true;
		else if (*at == 0xf2 || *at == 0xf3)
			to->repeated = true;
		else if (*at == 0x67)
			to->address_size = true;
		else if (*at == 0x64 || *at == 0x65)
			to->segment = *at;
		else if (*at != 0x2e && *at != 0x36 && *at != 0x3e && *at != 0x26)
			break;
	}
	if (at < end && (*at & 0xf0) == 0x40)
		to->rex = *at++;
	if (at == end)
		return false;
	if ((*at == 0xc5 && end - at > 3) || (*at == 0xc4 && end - at > 4)) {
		/* In 64-bit code these are always VEX prefixes. */
		to->vex = true;
		to->opcode_map = *at == 0xc5 ? 1 : at[1] & 0x1f;
		to->operand_size = (*at == 0xc5 ? at[1] & 3 : at[2] & 3) == 1;
		at += *at == 0xc5 ? 2 : 3;
	} else if (*at == 0x0f) {
		if (++at == end)
			return false;
		to->opcode_map = 1;
		if (*at == 0x38 || *at == 0x3a)
			to->opcode_map = *at++ == 0x38 ? 2 : 3;
	}
	if (at == end)
		return false;
	to->opcode = *at++;
	to->rest = at;
	to->left = end - at;
	if (at < end)
		to->modrm = *at;
	return true;
}

static bool in_memory(const struct decoded *insn)
{
	return insn->left && insn->modrm >> 6 != 3;
}

bool goes_around_cache(const struct decoded *insn)
{
	if (insn->opcode_map != 1 || !insn->left)
		return false;
	if (!in_memory(insn))
		return insn->opcode == 0xf7;		/* maskmovq, maskmovdqu */
	return (insn->opcode == 0xc3 && !insn->vex) ||	/* movnti */
	       insn->opcode == 0xe7 ||			/* movntq, movntdq */
	       insn->opcode == 0x2b;			/* movntps, movntpd, movntss, movntsd */
}

bool is_fence(const struct decoded *insn)
{
	if (insn->locked)
		return true;
	if (insn->opcode_map == 0 && (insn->opcode == 0x86 || insn->opcode == 0x87))
		return in_memory(insn);			/* xchg */
	return insn->opcode_map == 1 && insn->opcode == 0xae && insn->left && !insn->repeated &&
	       !insn->operand_size && insn->modrm >= 0xf0;	/* mfence, sfence */
}

bool is_write_back(const struct decoded *insn)
{
	if (insn->opcode_map != 1 || insn->opcode != 0xae || !in_memory(insn) || insn->vex ||
	    insn->repeated)
		return false;
	switch (insn->modrm >> 3 & 7) {
	case 6:
		return insn->operand_size;		/* clwb; else xsaveopt */
	case 7:
		return true;				/* clflushopt, clflush */
	}
	return false;
}

struct operand *operand_of(const struct decoded *insn, uint64_t next)
{
	/* As long as the translation lasts, and after: there are few of them. */
	struct operand *to = calloc(1, sizeof(*to));
	unsigned int mode = insn->modrm >> 6, rm = insn->modrm & 7;
	const unsigned char *at = insn->rest + 1;
	int32_t wide;

	if (!to)
		fail("no memory");
	to->index = to->segment = -1;
	if (insn->segment)
		to->segment = insn->segment == 0x64 ? FS_BASE : GS_BASE;
	to->narrow = insn->address_size;
	to->base = rm | (insn->rex & 1) << 3;
	if (rm == 4) {
		unsigned int sib = *at++;

		to->base = (sib & 7) | (insn->rex & 1) << 3;
		to->index = (sib >> 3 & 7) | (insn->rex & 2) << 2;
		if (to->index == 4)
			to->index = -1;
		to->scale = sib >> 6;
		if ((sib & 7) == 5 && mode == 0) {
			to->base = -1;
			mode = 2;
		}
	} else if (rm == 5 && mode == 0) {
		to->base = -1;
		to->displacement = next;
		mode = 2;
	}
	if (mode == 1) {
		to->displacement += (signed char)*at;
	} else if (mode == 2) {
		memcpy(&wide, at, sizeof(wide));
		to->displacement += wide;
	}
	return to;
}
