// SPDX-License-Identifier: GPL-2.0
/*
 * plugin: has QEMU's emulation tell the model of persistent memory (model.c) what processors do to it, and
 * answers what programs in the guest ask (powercut.h).
 *
 * It sees each store to the device that is recorded, each write-back of a cache line and each fence.
 * Afterwards it puts what cuts leave on other devices of the guest, one after the other, which looks at them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "emulator.h"
#include "model.h"

int qemu_plugin_version = 4;

/* Where the kernel has all memory, without randomisation: with four levels of page tables or five. */
static const uint64_t direct_maps[] = { 0xffff888000000000ULL, 0xff11000000000000ULL };
static uint64_t direct_map;

/* Microseconds to wait after the last line of a page is written back. */
static uint64_t slow_writebacks;
/* Lines that changed unseen in what was recorded last. */
static uint64_t missed;

static uint64_t plugin;

/* The physical address, all ones if there is none. */
static uint64_t translate(unsigned int vcpu, uint64_t address)
{
	uint64_t attributes;
	uint64_t page = cpu_get_phys_page_attrs_debug(qemu_get_cpu(vcpu), address & -PAGE, &attributes);

	return page == ~0ULL ? page : page + address % PAGE;
}

/*
 * Where a processor has stored last, page by page. Another processor may have taken the page's entry out
 * of the page table, and waits until this one has dropped what it remembers of it: until then this one
 * goes by what it remembers, as its own stores do.
 */
#define REMEMBERED 256
static struct {
	uint64_t page, at;
} remembered[PROCESSORS][REMEMBERED];

static void remember(unsigned int vcpu, uint64_t address, uint64_t at)
{
	uint64_t page = address / PAGE;

	remembered[vcpu][page % REMEMBERED].page = page;
	remembered[vcpu][page % REMEMBERED].at = at - address % PAGE;
}

/* The place in the device, at least its size if it is elsewhere. */
static uint64_t place_of(unsigned int vcpu, uint64_t address)
{
	uint64_t page = address / PAGE, at;

	/* The kernel uses the device through this mapping alone; else STOP would find differences. */
	if (address >> 63)
		return address - direct_map - physical;
	at = translate(vcpu, address);
	if (at == ~0ULL && remembered[vcpu][page % REMEMBERED].page == page)
		at = remembered[vcpu][page % REMEMBERED].at + address % PAGE;
	return at - physical;
}

/*
 * As place_of(), of a store by user space that was just made: where it went to. The page table need not
 * say that any more.
 */
static uint64_t place_of_store(unsigned int vcpu, uint32_t info, uint64_t address)
{
	struct qemu_plugin_hwaddr *where_to = qemu_plugin_get_hwaddr(info, address);
	uint64_t at;

	if (!where_to)
		return place_of(vcpu, address);
	if (qemu_plugin_hwaddr_is_io(where_to))
		return ~0ULL;
	at = qemu_plugin_hwaddr_phys_addr(where_to);
	if (at - physical < size)
		remember(vcpu, address, at);
	return at - physical;
}

static void stored_by_user(unsigned int vcpu, uint32_t info, uint64_t address, uint64_t pc,
			   bool around_cache)
{
	unsigned int bytes = 1U << qemu_plugin_mem_size_shift(info), first = bytes;
	uint64_t offset;

	if (processors[vcpu].late)
		usleep(processors[vcpu].late);
	if (address % PAGE + bytes > PAGE)
		first = PAGE - address % PAGE;
	offset = place_of_store(vcpu, info, address);
	if (offset < size)
		stored(vcpu, offset, first, pc, around_cache);
	if (first < bytes) {
		offset = place_of_store(vcpu, info, address + first);
		if (offset < size)
			stored(vcpu, offset, bytes - first, pc, around_cache);
	}
}

static void user_or_kernel(unsigned int vcpu, uint32_t info, uint64_t address, void *pc,
			   bool around_cache)
{
	unsigned int bytes = 1U << qemu_plugin_mem_size_shift(info);
	uint64_t offset = address - direct_map - physical;

	if (state != RECORDING)
		return;
	/* Most are by the kernel, and to ordinary memory. */
	if (!(address >> 63))
		stored_by_user(vcpu, info, address, (uint64_t)pc, around_cache);
	else if (offset + bytes - 1 < size + bytes - 1)
		stored(vcpu, offset, bytes, (uint64_t)pc, around_cache);
	/* Others only read it. */
	__atomic_store_n(&processors[vcpu].told, processors[vcpu].told + 1, __ATOMIC_RELEASE);
}

static void on_store(unsigned int vcpu, uint32_t info, uint64_t address, void *pc)
{
	user_or_kernel(vcpu, info, address, pc, false);
}

static void on_store_around_cache(unsigned int vcpu, uint32_t info, uint64_t address, void *pc)
{
	user_or_kernel(vcpu, info, address, pc, true);
}

static uint64_t read_register(unsigned int vcpu, int number)
{
	static __thread struct byte_array *bytes;
	uint64_t value;

	if (!bytes)
		bytes = g_byte_array_new();
	g_byte_array_set_size(bytes, 0);
	if (qemu_plugin_read_register(processors[vcpu].registers[number], bytes) != sizeof(value))
		fail("cannot read a register");
	memcpy(&value, bytes->data, sizeof(value));
	return value;
}

static void on_write_back(unsigned int vcpu, void *data)
{
	const struct operand *operand = data;
	uint64_t address = operand->displacement, offset;

	if (state != RECORDING)
		return;
	if (operand->base >= 0)
		address += read_register(vcpu, operand->base);
	if (operand->index >= 0)
		address += read_register(vcpu, operand->index) << operand->scale;
	if (operand->narrow)
		address = (uint32_t)address;
	if (operand->segment >= 0)
		address += read_register(vcpu, operand->segment);
	offset = place_of(vcpu, address);
	if (offset < size)
		write_back(vcpu, offset);
	if (slow_writebacks && offset % PAGE / LINE == PAGE / LINE - 1)
		usleep(slow_writebacks);
}

void *guest_memory(uint64_t at, uint64_t bytes)
{
	uint64_t length = bytes;
	void *memory = cpu_physical_memory_map(at, &length, true);

	if (!memory || length < bytes)
		fail("a device's memory is not where the guest says");
	return memory;
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb);

static void changed_over(uint64_t id)
{
	/* No processor runs meanwhile. */
	if (state == BEGINNING) {
		memset(remembered, 0, sizeof(remembered));
		begin_recording();
	} else {
		/* All stores have been reported by now. */
		missed = unseen();
		applied = changed;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	state = state == BEGINNING ? RECORDING : QUIET;
}

static int64_t processor_time(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int64_t serve(unsigned int vcpu, struct powercut *request)
{
	const uint64_t *a = request->a;
	const struct loss *loss;

	switch (request->op) {
	case POWERCUT_DEVICE:
		return set_device(request);
	case POWERCUT_RECORD:
		direct_map = direct_maps[0];
		if (translate(vcpu, direct_map + physical) != physical)
			direct_map = direct_maps[1];
		if (translate(vcpu, direct_map + physical) != physical)
			fail("the kernel's mapping of the device is not where it was expected");
		prepare_recording(a[0], a[1], a[2]);
		qemu_plugin_reset(plugin, changed_over);
		return 0;
	case POWERCUT_STATE:
		return state == RECORDING ? 1 : state == QUIET ? 0 : -1;
	case POWERCUT_EVENT:
		event(a[0], a[1]);
		return cut_count;
	case POWERCUT_CUT:
		if (rate != POWERCUT_EVERY_FENCE)
			cut(a[0], POWERCUT_ON_REQUEST);
		return cut_count - 1;
	case POWERCUT_STOP:
		qemu_plugin_reset(plugin, changed_over);
		return 0;
	case POWERCUT_LATE:
		processors[vcpu].late = a[0];
		slow_writebacks = a[1];
		return 0;
	case POWERCUT_MISSED:
		return missed;
	case POWERCUT_LOAD:
		return load(request);
	case POWERCUT_PEEK:
		return peek(request);
	case POWERCUT_LOST:
		return cuts[a[0]].lost;
	case POWERCUT_LINE:
		loss = &losses[cuts[a[0]].losses + a[1]];
		request->a[0] = loss->pc;
		return physical + (uint64_t)loss->line * LINE;
	case POWERCUT_SURVIVED:
		return cuts[a[0]].survived;
	case POWERCUT_SURVIVOR:
		return physical + (uint64_t)survivors[cuts[a[0]].survivors + a[1]].line * LINE;
	case POWERCUT_COUNTS:
		request->a[0] = stores;
		request->a[1] = writebacks;
		request->a[2] = fences;
		request->a[3] = changed;
		return 0;
	case POWERCUT_KEEP:
		return keep(request);
	case POWERCUT_RESTORE:
		return restore(request);
	case POWERCUT_COPY:
		return copy(request);
	case POWERCUT_COPY_STATE:
		return copy_state(request);
	case POWERCUT_CLOCK:
		return processor_time();
	}
	return -1;
}

static void on_request(unsigned int vcpu, void *data)
{
	uint64_t address = read_register(vcpu, 0), at = translate(vcpu, address);
	struct powercut *request;

	(void)data;
	if (at == ~0ULL)
		fail("a request that is not there");
	request = guest_memory(at, sizeof(*request));
	pthread_mutex_lock(&lock);
	request->answer = serve(vcpu, request);
	pthread_mutex_unlock(&lock);
	cpu_physical_memory_unmap(request, sizeof(*request), true, sizeof(*request));
}

static void translated(uint64_t id, struct qemu_plugin_tb *tb)
{
	static const char mark[] = POWERCUT_OPCODE;
	size_t i, n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		size_t length = qemu_plugin_insn_size(insn);
		uint64_t pc = qemu_plugin_insn_vaddr(insn);
		unsigned char bytes[16] = { 0 };
		struct decoded decoded;
		uint32_t value;

		if (length >= sizeof(bytes))
			continue;
		qemu_plugin_insn_data(insn, bytes, length);
		if (length == 7 && !memcmp(bytes, mark, 3)) {
			memcpy(&value, bytes + 3, sizeof(value));
			if (value == POWERCUT_MARK)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_request,
								       QEMU_PLUGIN_CB_R_REGS, NULL);
			continue;
		}
		if (state != RECORDING)
			continue;
		if (!decode(bytes, length, &decoded))
			continue;
		if (is_fence(&decoded))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, fence, QEMU_PLUGIN_CB_NO_REGS,
							       NULL);
		if (is_write_back(&decoded))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_write_back,
							       QEMU_PLUGIN_CB_R_REGS,
							       operand_of(&decoded, pc + length));
		qemu_plugin_register_vcpu_mem_cb(insn, goes_around_cache(&decoded) ?
						 on_store_around_cache : on_store,
						 QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_W,
						 (void *)pc);
	}
}

static void started(uint64_t id, unsigned int vcpu)
{
	static const char *const names[] = {
		"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
		"r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "fs_base", "gs_base",
	};
	struct register_array *all = qemu_plugin_get_registers();
	unsigned int i, j;

	(void)id;
	if (vcpu >= PROCESSORS)
		fail("too many processors");
	for (i = 0; i < REGISTERS; i++) {
		for (j = 0; j < all->count; j++)
			if (!strcmp(all->registers[j].name, names[i]))
				processors[vcpu].registers[i] = all->registers[j].handle;
		if (!processors[vcpu].registers[i])
			fail("a processor lacks a register");
	}
	processors[vcpu].pending = room(ROOM);
}

int qemu_plugin_install(uint64_t id, const struct machine *machine, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (!machine->system_emulation) {
		fprintf(stderr, "powercut: for machines, not for programs\n");
		return -1;
	}
	plugin = id;
	make_rooms();
	qemu_plugin_register_vcpu_init_cb(id, started);
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
