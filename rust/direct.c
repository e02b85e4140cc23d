// SPDX-License-Identifier: GPL-2.0

/*
 * The short way of the redirection: ftrace has the entries of the two most frequent functions call
 * rdax_direct_call() at once, instead of a callback for which all registers are saved. It decides
 * as the callback in redirect/callback.rs does, and sends the call to the module's function by returning
 * there, so that no more than one return is mispredicted.
 */

#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/mm_types.h>
#include <linux/objtool.h>

#include <asm/ibt.h>
#include <asm/linkage.h>
#include <asm/nospec-branch.h>

#include "helpers.h"

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS

static struct rdax_direct __used rdax_direct;

void rdax_direct_set(const struct rdax_direct *direct)
{
	rdax_direct = *direct;
}

/* Constants of C for the code below: an asm outside of functions takes no operands. */
#define DEFINE(name, value)	({ asm volatile(".set " #name ", %c0" : : "i" (value)); })

static void __used define_offsets(void)
{
	DEFINE(DIRECT_MEMBERS, offsetof(struct rdax_direct, members));
	DEFINE(DIRECT_FAULT_RETURN, offsetof(struct rdax_direct, fault_return));
	DEFINE(DIRECT_FAULT_TO, offsetof(struct rdax_direct, fault_to));
	DEFINE(DIRECT_RW_TO, offsetof(struct rdax_direct, rw_to));
	DEFINE(VMF_VMA, offsetof(struct vm_fault, vma));
	DEFINE(VMA_FILE, offsetof(struct vm_area_struct, vm_file));
	DEFINE(KIOCB_FILE, offsetof(struct kiocb, ki_filp));
	DEFINE(FILE_MAPPING, offsetof(struct file, f_mapping));
	DEFINE(MAPPING_HOST, offsetof(struct address_space, host));
	DEFINE(INODE_SB, offsetof(struct inode, i_sb));
	DEFINE(SB_BDEV, offsetof(struct super_block, s_bdev));
}

/*
 * On entry the stack has the address behind the call in the function, then the function's return
 * address; all registers that carry arguments are live, and rax, r10 and r11 are free.
 */
asm(
"	.pushsection .text, \"ax\", @progbits\n"
"	.type rdax_direct_call, @function\n"
"	.globl rdax_direct_call\n"
"rdax_direct_call:\n"
"	" ASM_ENDBR
"	" CALL_DEPTH_ACCOUNT "\n"
"	movq (%rsp), %rax\n"
"	cmpq %rax, rdax_direct + DIRECT_FAULT_RETURN(%rip)\n"
"	jne 1f\n"
"	movq rdax_direct + DIRECT_FAULT_TO(%rip), %r11\n"
"	movq VMF_VMA(%rdi), %rax\n"
"	movq VMA_FILE(%rax), %rax\n"
"	jmp 2f\n"
"1:	movq rdax_direct + DIRECT_RW_TO(%rip), %r11\n"
"	movq KIOCB_FILE(%rdi), %rax\n"
"2:	movq FILE_MAPPING(%rax), %rax\n"
"	movq MAPPING_HOST(%rax), %rax\n"
"	movq INODE_SB(%rax), %rax\n"
"	movq SB_BDEV(%rax), %rax\n"
/* The device's home in the table of adopted devices (Members in bdev.rs). */
"	movabsq $" __stringify(RDAX_MEMBER_FACTOR) ", %r10\n"
"	imulq %rax, %r10\n"
"	shrq $(64 - " __stringify(RDAX_MEMBER_BITS) "), %r10\n"
"	shlq $3, %r10\n"
"	addq rdax_direct + DIRECT_MEMBERS(%rip), %r10\n"
"	cmpq %rax, (%r10)\n"
"	jne 4f\n"
"	testq %rax, %rax\n"
"	je 3f\n"
"	movq %r11, (%rsp)\n"
"3:	" ASM_RET
"4:	cmpq $0, (%r10)\n"
"	je 3b\n"
/* Another device is at home there, or was. */
"	pushq %rdi\n"
"	pushq %rsi\n"
"	pushq %rdx\n"
"	pushq %rcx\n"
"	pushq %r8\n"
"	pushq %r9\n"
"	pushq %r11\n"
"	subq $8, %rsp\n"
"	movq rdax_direct + DIRECT_MEMBERS(%rip), %rdi\n"
"	movq %rax, %rsi\n"
"	call rdax_is_member\n"
"	addq $8, %rsp\n"
"	popq %r11\n"
"	popq %r9\n"
"	popq %r8\n"
"	popq %rcx\n"
"	popq %rdx\n"
"	popq %rsi\n"
"	popq %rdi\n"
"	testb %al, %al\n"
"	je 3b\n"
"	movq %r11, (%rsp)\n"
"	" ASM_RET
"	.size rdax_direct_call, .-rdax_direct_call\n"
"	.popsection\n"
);

#ifdef RDAX_TEST
int rdax_direct_decide(bool rw, void *first, const void *members)
{
	struct rdax_direct kept = rdax_direct;
	unsigned long to = rw;

	/*
	 * rdax_direct_call() returns to code that says which place it is, and then to the last line, as a
	 * function does to its caller.
	 */
	rdax_direct.members = members;
	asm volatile(
	"	leaq 1f(%%rip), %%rax\n"
	"	movq %%rax, rdax_direct + DIRECT_FAULT_RETURN(%%rip)\n"
	"	leaq 3f(%%rip), %%rax\n"
	"	movq %%rax, rdax_direct + DIRECT_FAULT_TO(%%rip)\n"
	"	leaq 4f(%%rip), %%rax\n"
	"	movq %%rax, rdax_direct + DIRECT_RW_TO(%%rip)\n"
	"	leaq 5f(%%rip), %%rax\n"
	"	pushq %%rax\n"
	"	leaq 1f(%%rip), %%rax\n"
	"	leaq 2f(%%rip), %%r10\n"
	"	testq %%rbx, %%rbx\n"
	"	cmovneq %%r10, %%rax\n"
	"	pushq %%rax\n"
	"	jmp rdax_direct_call\n"
	"1:	movl $1, %%ebx\n"
	"	" ASM_RET
	"2:	movl $2, %%ebx\n"
	"	" ASM_RET
	"3:	movl $3, %%ebx\n"
	"	" ASM_RET
	"4:	movl $4, %%ebx\n"
	"	" ASM_RET
	"5:\n"
	: "+b" (to), "+D" (first)
	: : "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");
	rdax_direct = kept;
	return to;
}
STACK_FRAME_NON_STANDARD(rdax_direct_decide);
#endif

#endif /* CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS */
