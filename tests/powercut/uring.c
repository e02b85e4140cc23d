// SPDX-License-Identifier: GPL-2.0
/* uring: what workload.c does by io_uring. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "uring.h"

/* An io_uring of one request at a time; -1 if there can be none. */
static struct {
	int fd;
	const uint32_t *sq_mask, *cq_mask;
	uint32_t *sq_tail, *sq_array, *cq_head;
	const uint32_t *cq_tail;
	struct io_uring_sqe *requests;
	const struct io_uring_cqe *answers;
} uring = { .fd = -1 };

int set_up_uring(void)
{
	struct io_uring_params params = { 0 };
	uint8_t *rings;
	size_t length, answers;
	int fd;

	if (uring.fd >= 0)
		return 0;
	fd = syscall(__NR_io_uring_setup, 1, &params);
	if (fd < 0)
		return -1;
	length = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
	answers = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	if (length < answers)
		length = answers;
	rings = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, IORING_OFF_SQ_RING);
	uring.requests = mmap(NULL, params.sq_entries * sizeof(*uring.requests), PROT_READ | PROT_WRITE,
			      MAP_SHARED, fd, IORING_OFF_SQES);
	if (!(params.features & IORING_FEAT_SINGLE_MMAP) || rings == MAP_FAILED || uring.requests == MAP_FAILED)
		return -1;
	uring.sq_mask = (uint32_t *)(rings + params.sq_off.ring_mask);
	uring.sq_tail = (uint32_t *)(rings + params.sq_off.tail);
	uring.sq_array = (uint32_t *)(rings + params.sq_off.array);
	uring.cq_mask = (uint32_t *)(rings + params.cq_off.ring_mask);
	uring.cq_head = (uint32_t *)(rings + params.cq_off.head);
	uring.cq_tail = (uint32_t *)(rings + params.cq_off.tail);
	uring.answers = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
	uring.fd = fd;
	return 0;
}

/* What a request is answered: an error is negative. */
static int64_t ask_uring(const struct io_uring_sqe *wanted)
{
	uint32_t tail = *uring.sq_tail, head = *uring.cq_head;
	int64_t answer;

	uring.requests[tail & *uring.sq_mask] = *wanted;
	uring.sq_array[tail & *uring.sq_mask] = tail & *uring.sq_mask;
	__atomic_store_n(uring.sq_tail, tail + 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, uring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	if (__atomic_load_n(uring.cq_tail, __ATOMIC_ACQUIRE) == head)
		return -EIO;
	answer = uring.answers[head & *uring.cq_mask].res;
	__atomic_store_n(uring.cq_head, head + 1, __ATOMIC_RELEASE);
	return answer;
}
int64_t write_by_uring(int fd, const void *from, const struct op *op)
{
	const struct io_uring_sqe wanted = {
		.opcode = IORING_OP_WRITE, .fd = fd, .addr = (uintptr_t)from, .len = op->length, .off = op->offset,
		.rw_flags = RWF_DSYNC,
	};

	return ask_uring(&wanted);
}

int sync_by_uring(int fd)
{
	const struct io_uring_sqe wanted = { .opcode = IORING_OP_FSYNC, .fd = fd };

	return ask_uring(&wanted) ? -1 : 0;
}
