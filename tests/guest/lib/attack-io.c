// SPDX-License-Identifier: GPL-2.0
/*
 * attack-io: what an attacker reads and writes, by all means.
 */
#include "attack.h"

#include <linux/falloc.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

void do_copy(void)
{
	int from = pick_file(), to = pick_file();
	off_t in = pick_offset(), out = pick_offset();
	size_t length = pick_length();
	struct file_clone_range clone = {
		.src_fd = from, .src_offset = in & ~(PAGE - 1), .dest_offset = out & ~(PAGE - 1),
		.src_length = length & ~(PAGE - 1),
	};
	struct { struct file_dedupe_range head; struct file_dedupe_range_info info[2]; } same = {
		.head = { .src_offset = in, .src_length = length, .dest_count = 1 + below(2) },
		.info = { { .dest_fd = to, .dest_offset = out },
			  { .dest_fd = pick_file(), .dest_offset = in } },
	};

	switch (below(6)) {
	case 0:
		CALL(from, to, length, copy_file_range(from, &in, to, &out,
						       length > MOST_FILE ? MOST_FILE : length, 0));
		break;
	case 1:
		CALL(from, to, 0, ioctl(to, FICLONE, from));
		break;
	case 2 ... 3:
		CALL(from, to, length, ioctl(to, FICLONERANGE, &clone));
		break;
	case 4:
		CALL(from, to, length, ioctl(from, FIDEDUPERANGE, &same));
		break;
	case 5:
		CALL(from, to, length, sendfile(to, from, &in, length > PMD ? PMD : length));
		break;
	}
}

void do_layout(void)
{
	static const int modes[] = {
		0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
		FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_COLLAPSE_RANGE,
		FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE, 0x80, 0x80 | FALLOC_FL_KEEP_SIZE,
	};
	int fd = pick_file(), mode = below(8) ? modes[below(11)] : (int)below(256);
	off_t at = pick_offset();
	size_t length = pick_length();

	/* The victim uses the file that both may write; cut is only what is the attackers' own. */
	if (below(2)) {
		CALL(fd, at, length, fallocate(fd, mode, at, length > MOST_FILE && below(8) ?
					       PMD : length));
	} else {
		fd = files[below(OWN_FILES)];
		at = below(4) ? below(MOST_FILE) : sizes[below(OWN_FILES)];
		CALL(fd, at, 0, ftruncate(fd, at));
	}
}

void do_io(void)
{
	static const int all_flags[] = { 0, 0, 0, 1, 2, 4, 8, 8, 0x10, 0x20, 0x40, 0x80, 0x100 };
	int way = below(6), flags = below(16) ? all_flags[below(13)] : (int)below(1ul << 32);
	int fd = below(4) ? pick_file() : direct[below(OWN_FILES)];
	off_t at = below(4) ? pick_offset() : -1;
	struct iovec vector[2];
	long done;

	for (int i = 0; i < 2; i++)
		vector[i].iov_base = pick_buffer(&vector[i].iov_len);
	switch (way) {
	case 0 ... 2:
		done = CALL(fd, at, vector[0].iov_len, preadv2(fd, vector, 1 + below(2), at, flags));
		if (done > 0 && vector[0].iov_base == scratch)
			look((uint64_t *)scratch, done < (long)vector[0].iov_len ? (size_t)done :
			     vector[0].iov_len, "what was read");
		break;
	case 3 ... 5:
		if (vector[0].iov_base == scratch)
			for (size_t i = 0; i < vector[0].iov_len / 8; i++)
				((uint64_t *)scratch)[i] = (uint64_t)OF_ATTACKER << 32 | i;
		CALL(fd, at, vector[0].iov_len, pwritev2(fd, vector, 1 + below(2), at, flags));
		break;
	}
}

/* Pages of mappings in pipes, and on to files, sockets and other pipes. */
void do_pipe(void)
{
	int *in = pipes[below(2)], *out = pipes[below(2)], fd = pick_file();
	struct iovec vector[4];
	off_t at = pick_offset();
	long done;

	for (int i = 0; i < 4; i++)
		vector[i].iov_base = pick_buffer(&vector[i].iov_len);
	switch (below(9)) {
	case 0 ... 1:
		CALL(vector[0].iov_base, vector[0].iov_len, 0,
		     vmsplice(in[1], vector, 1 + below(4), SPLICE_F_NONBLOCK |
			      (below(2) ? SPLICE_F_GIFT : 0)));
		break;
	case 2:
		CALL(vector[0].iov_base, vector[0].iov_len, 0,
		     vmsplice(in[0], vector, 1 + below(4), SPLICE_F_NONBLOCK));
		break;
	case 3 ... 4:
		done = CALL(in[0], 0, 0, read(in[0], scratch, 1 + below(64 * PAGE)));
		if (done > 0)
			look((uint64_t *)scratch, done, "a pipe");
		break;
	case 5:
		CALL(in[0], out[1], 0, tee(in[0], out[1], pick_length(), SPLICE_F_NONBLOCK));
		break;
	case 6:
		CALL(in[0], fd, at, splice(in[0], NULL, fd, &at, pick_length(), SPLICE_F_NONBLOCK |
					   SPLICE_F_MOVE));
		break;
	case 7:
		CALL(fd, in[1], at, splice(fd, &at, in[1], NULL, pick_length(), SPLICE_F_NONBLOCK));
		break;
	case 8:
		if (below(2))
			CALL(0, 0, 0, splice(in[0], NULL, sockets[0], NULL, PAGE, SPLICE_F_NONBLOCK));
		else if (below(2))
			CALL(0, 0, 0, splice(sockets[1], NULL, in[1], NULL, PAGE, SPLICE_F_NONBLOCK));
		else
			CALL(0, 0, 0, fcntl(in[1], F_SETPIPE_SZ, PAGE << below(8)));
		break;
	}
}

void do_process_vm(void)
{
	struct iovec local, remote;
	pid_t pid = below(2) ? getpid() : getppid();

	local.iov_base = pick_buffer(&local.iov_len);
	remote.iov_base = pick();
	remote.iov_len = inside(remote.iov_base);
	if (below(2))
		CALL(remote.iov_base, remote.iov_len, pid,
		     process_vm_readv(pid, &local, 1, &remote, 1, 0));
	else
		CALL(remote.iov_base, remote.iov_len, pid,
		     process_vm_writev(pid, &local, 1, &remote, 1, 0));
}

static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;

void do_uring(void)
{
	struct io_uring_cqe *done;
	struct io_uring_sqe *entry;
	struct iovec vector;
	size_t length;
	uint8_t *at;
	int fd = pick_file();

	if (!has_ring || pthread_mutex_trylock(&ring_lock))
		return;
	while (!io_uring_peek_cqe(&ring, &done))
		io_uring_cqe_seen(&ring, done);
	at = pick_buffer(&length);
	if (!below(6)) {
		vector.iov_base = below(2) ? scratch : at;
		vector.iov_len = PMD;
		if (below(2))
			CALL(0, 0, 0, io_uring_unregister_buffers(&ring));
		CALL(vector.iov_base, PMD, 0, io_uring_register_buffers(&ring, &vector, 1));
	}
	for (int i = 1 + below(4); i; i--) {
		entry = io_uring_get_sqe(&ring);
		if (!entry)
			break;
		at = pick_buffer(&length);
		switch (below(11)) {
		case 0 ... 1:
			io_uring_prep_read(entry, fd, at, length, pick_offset());
			break;
		case 2 ... 3:
			io_uring_prep_write(entry, fd, at, length, pick_offset());
			break;
		case 4:
			io_uring_prep_read_fixed(entry, fd, scratch, length, pick_offset(), 0);
			break;
		case 5:
			io_uring_prep_write_fixed(entry, fd, scratch, length, pick_offset(), 0);
			break;
		case 6:
			io_uring_prep_fsync(entry, fd, below(2));
			break;
		case 7:
			io_uring_prep_fallocate(entry, files[below(OWN_FILES)], below(4),
						pick_offset(), pick_length());
			break;
		case 8:
			at = pick();
			io_uring_prep_madvise(entry, at, length_at(at), pick_advice());
			break;
		case 9:
			io_uring_prep_splice(entry, fd, pick_offset(), pipes[0][1], -1, PAGE, 0);
			break;
		case 10:
			io_uring_prep_ftruncate(entry, files[below(OWN_FILES)], below(MOST_FILE));
			break;
		}
		if (below(2))
			entry->flags |= IOSQE_ASYNC;
		if (!below(4))
			entry->flags |= IOSQE_IO_LINK;
	}
	CALL(fd, 0, 0, io_uring_submit(&ring));
	pthread_mutex_unlock(&ring_lock);
}

void do_aio(void)
{
	size_t length;
	uint8_t *at = pick_buffer(&length);
	struct iocb request = {
		.aio_lio_opcode = below(2) ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE,
		.aio_fildes = below(2) ? direct[below(OWN_FILES)] : pick_file(),
		.aio_buf = (uintptr_t)at, .aio_nbytes = length, .aio_offset = pick_offset(),
	}, *list = &request;
	struct io_event events[4];
	struct timespec now = { 0 };

	CALL(at, length, 0, syscall(SYS_io_submit, aio, 1, &list));
	CALL(0, 0, 0, syscall(SYS_io_getevents, aio, 0, 4, events, &now));
}
