/* SPDX-License-Identifier: GPL-2.0 */
/* One io_uring for whoever needs one. */
#ifndef RDAX_POWERCUT_URING_H
#define RDAX_POWERCUT_URING_H

#include "workload.h"

int set_up_uring(void);
int64_t write_by_uring(int fd, const void *from, const struct op *op);
int sync_by_uring(int fd);

#endif /* RDAX_POWERCUT_URING_H */
