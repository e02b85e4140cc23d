/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What plugin.c uses of QEMU beyond bench/plugin.h: more of the interface for plugins, three functions
 * of the emulator itself, because that interface does not tell the address that a cache line
 * instruction means nor give memory to write to, and the types of GLib in between.
 */
#ifndef RDAX_POWERCUT_EMULATOR_H
#define RDAX_POWERCUT_EMULATOR_H

#include "../../bench/plugin.h"

#define QEMU_PLUGIN_CB_R_REGS ((enum qemu_plugin_cb_flags)1)

enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W };

struct qemu_plugin_hwaddr;
struct qemu_plugin_register;

struct byte_array {
	uint8_t *data;
	unsigned int count;
};

struct register_array {
	struct {
		struct qemu_plugin_register *handle;
		const char *name;
		const char *feature;
	} *registers;
	unsigned int count;
};

void qemu_plugin_reset(uint64_t id, void (*call)(uint64_t id));
void qemu_plugin_register_vcpu_init_cb(uint64_t id, void (*call)(uint64_t id, unsigned int vcpu));
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
				      void (*call)(unsigned int vcpu, uint32_t info,
						   uint64_t address, void *data),
				      enum qemu_plugin_cb_flags flags, enum qemu_plugin_mem_rw rw,
				      void *data);
unsigned int qemu_plugin_mem_size_shift(uint32_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t address);
bool qemu_plugin_hwaddr_is_io(const struct qemu_plugin_hwaddr *address);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *address);
struct register_array *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *handle, struct byte_array *to);

struct cpu;
struct cpu *qemu_get_cpu(int number);
uint64_t cpu_get_phys_page_attrs_debug(struct cpu *cpu, uint64_t page, uint64_t *attributes);
void *cpu_physical_memory_map(uint64_t address, uint64_t *length, bool write);
void cpu_physical_memory_unmap(void *memory, uint64_t length, bool write, uint64_t accessed);

struct byte_array *g_byte_array_new(void);
struct byte_array *g_byte_array_set_size(struct byte_array *array, unsigned int size);

#endif
