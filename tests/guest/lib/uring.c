// SPDX-License-Identifier: GPL-2.0
/* Input and output with a buffer that is registered with io_uring, and pinned for as long. */
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/*
 * Register @length bytes at @buffer, then move them in pieces of @piece bytes from (or, with
 * @write, to) the beginning of a file. Returns the bytes moved or -errno.
 */
long uring_move(int fd, void *buffer, size_t length, size_t piece, int write)
{
	struct iovec all = { .iov_base = buffer, .iov_len = length };
	struct io_uring_cqe *done;
	struct io_uring_sqe *entry;
	struct io_uring ring;
	long moved = 0, error;

	error = io_uring_queue_init(8, &ring, 0);
	if (error)
		return error;
	error = io_uring_register_buffers(&ring, &all, 1);
	for (size_t at = 0; at < length && !error; at += piece) {
		entry = io_uring_get_sqe(&ring);
		if (write)
			io_uring_prep_write_fixed(entry, fd, buffer + at, piece, at, 0);
		else
			io_uring_prep_read_fixed(entry, fd, buffer + at, piece, at, 0);
		error = io_uring_submit(&ring) == 1 ? 0 : -EIO;
		if (!error)
			error = io_uring_wait_cqe(&ring, &done);
		if (error)
			break;
		if (done->res < 0)
			error = done->res;
		else
			moved += done->res;
		io_uring_cqe_seen(&ring, done);
	}
	io_uring_queue_exit(&ring);
	return error ? error : moved;
}

/*
 * Move @length bytes from @offset of a file on to (or, with @write, from) a buffer, by a worker of
 * io_uring's. Returns the bytes moved or -errno.
 */
long uring_transfer(int fd, void *buffer, size_t length, size_t offset, int write)
{
	struct io_uring_cqe *done;
	struct io_uring_sqe *entry;
	struct io_uring ring;
	long result;

	result = io_uring_queue_init(8, &ring, 0);
	if (result)
		return result;
	entry = io_uring_get_sqe(&ring);
	if (write)
		io_uring_prep_write(entry, fd, buffer, length, offset);
	else
		io_uring_prep_read(entry, fd, buffer, length, offset);
	entry->flags |= IOSQE_ASYNC;
	result = io_uring_submit(&ring) == 1 ? 0 : -EIO;
	if (!result)
		result = io_uring_wait_cqe(&ring, &done);
	if (!result)
		result = done->res;
	io_uring_queue_exit(&ring);
	return result;
}

/* Have @length bytes at @buffer mapped for writing by a worker of io_uring's. Returns 0 or -errno. */
long uring_populate(void *buffer, size_t length)
{
	struct io_uring_cqe *done;
	struct io_uring ring;
	long error;

	error = io_uring_queue_init(8, &ring, 0);
	if (error)
		return error;
	io_uring_prep_madvise(io_uring_get_sqe(&ring), buffer, length, MADV_POPULATE_WRITE);
	error = io_uring_submit(&ring) == 1 ? 0 : -EIO;
	if (!error)
		error = io_uring_wait_cqe(&ring, &done);
	if (!error)
		error = done->res;
	io_uring_queue_exit(&ring);
	return error;
}
