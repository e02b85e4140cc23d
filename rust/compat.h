/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All differences between the kernels that the module is built for: Kbuild finds them in the kernel's
 * headers (RDAX_HAVE_…), not by its version.
 */
#ifndef RDAX_COMPAT_H
#define RDAX_COMPAT_H

/* <linux/leafops.h> does not include what it needs in each of them. */
#include <linux/swap.h>
#include <linux/mm.h>
#include <linux/pgtable.h>

/* The bit of an entry that userfaultfd set, for more than write-protection since 7.3. */
#ifndef RDAX_HAVE_PTE_UFFD
#define pte_uffd pte_uffd_wp
#define pte_mkuffd pte_mkuffd_wp
#define pmd_uffd pmd_uffd_wp
#define _PAGE_UFFD _PAGE_UFFD_WP
#endif

/* Protection for userfaultfd of more than stores. */
#ifndef MM_CP_UFFD_RWP_ALL
#define MM_CP_UFFD_RWP_ALL 0
#endif

#endif
