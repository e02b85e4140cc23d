// SPDX-License-Identifier: GPL-2.0
/* Helpers that some kernels lack of the kernel crate (compat.rs). */

#include "compat.h"
#include <linux/slab.h>
#include <linux/srcu.h>

#include "helpers.h"

#ifndef RDAX_HAVE_SRCU

struct rdax_srcu {
	struct srcu_struct srcu;
};

struct rdax_srcu *rdax_srcu_new(void)
{
	struct rdax_srcu *new = kzalloc(sizeof(*new), GFP_KERNEL);

	if (new && init_srcu_struct(&new->srcu)) {
		kfree(new);
		new = NULL;
	}
	return new;
}

void rdax_srcu_free(struct rdax_srcu *srcu)
{
	cleanup_srcu_struct(&srcu->srcu);
	kfree(srcu);
}

int rdax_srcu_read_lock(struct rdax_srcu *srcu)
{
	return srcu_read_lock(&srcu->srcu);
}

void rdax_srcu_read_unlock(struct rdax_srcu *srcu, int index)
{
	srcu_read_unlock(&srcu->srcu, index);
}

void rdax_srcu_synchronize(struct rdax_srcu *srcu)
{
	synchronize_srcu(&srcu->srcu);
}

#endif
