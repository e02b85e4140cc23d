// SPDX-License-Identifier: GPL-2.0
/*
 * Entries of page tables: what the kernel's headers have as inline functions and macros. What is
 * entered where, and what is counted for it, is decided in rust/page_table.rs.
 */

#include "compat.h"
#include <linux/leafops.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/rmap.h>
#include <linux/static_call.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmstat.h>

#include "helpers.h"
#ifdef RDAX_TEST
#include "testing.h"
#endif

/* ---- what the VMA says ---- */

bool rdax_vma_is_watched(struct vm_area_struct *vma, bool write)
{
	if (userfaultfd_armed(vma))
		return true;
	/* Since clear_refs was written to, stores to this VMA have to be told from one another. */
	return write && pgtable_supports_soft_dirty() && !(vma->vm_flags & VM_SOFTDIRTY);
}

static bool is_writable(struct vm_area_struct *vma)
{
	return vma->vm_flags & VM_WRITE;
}

/* ---- the lowest level ---- */

static int nothing(pte_t *ptep, unsigned long addr, void *data)
{
	return 0;
}

#ifdef RDAX_TEST
static bool tables_withheld;

void rdax_test_withhold_tables(bool withhold)
{
	tables_withheld = withhold;
}
#else
static const bool tables_withheld;
#endif

int rdax_ptes_make(struct vm_fault *vmf)
{
	if (!pmd_none(pmdp_get_lockless(vmf->pmd)))
		return 0;
	if (tables_withheld)
		return -ENOMEM;
	return apply_to_page_range(vmf->vma->vm_mm, vmf->address & PAGE_MASK, PAGE_SIZE, nothing,
				   NULL);
}

pte_t *rdax_ptes_lock(struct vm_fault *vmf, unsigned long addr, spinlock_t **lock)
{
	pmd_t pmd;

	/* A table that is taken away is freed after a grace period. */
	rcu_read_lock();
	pmd = pmdp_get_lockless(vmf->pmd);
	if (pmd_present(pmd) && !pmd_leaf(pmd) && !pmd_bad(pmd)) {
		*lock = pte_lockptr(vmf->vma->vm_mm, &pmd);
		spin_lock(*lock);
		/* The table is removed under this lock only. */
		if (likely(pmd_same(pmd, pmdp_get_lockless(vmf->pmd))))
			return (pte_t *)pmd_page_vaddr(pmd) + pte_index(addr);
		spin_unlock(*lock);
	}
	rcu_read_unlock();
	return NULL;
}

void rdax_ptes_unlock(spinlock_t *lock)
{
	spin_unlock(lock);
	rcu_read_unlock();
}

/* From the last entry to the first, so that there is one bit to be put in for each. */
static unsigned long empty(const pte_t *ptes, unsigned long n)
{
	unsigned long found = 0;

	while (n--)
		found = found << 1 | pte_none(ptep_get((pte_t *)ptes + n));
	return found;
}

/*
 * Entries that may be made writable without a fault. One that userfaultfd has write-protected may not: it
 * has to note the store. Nor one that is dirty already: the processor would not report another store.
 */
static unsigned long closed(const pte_t *ptes, unsigned long n)
{
	/* One that is for NUMA balancing to find is not present to the processor. */
	const pteval_t flags = _PAGE_PRESENT | _PAGE_RW | _PAGE_DIRTY_BITS | _PAGE_UFFD;
	unsigned long found = 0;

	while (n--) {
		pte_t pte = ptep_get((pte_t *)ptes + n);

		found = found << 1 | ((native_pte_val(pte) & flags) == _PAGE_PRESENT);
	}
	return found;
}

unsigned long rdax_candidate_ptes(const pte_t *ptes, unsigned long n, bool protected)
{
	return protected ? closed(ptes, n) : empty(ptes, n);
}

unsigned long rdax_vmf_candidate_ptes(struct vm_fault *vmf, unsigned long addr, unsigned long n,
				      bool protected)
{
	unsigned long candidates = protected ? 0 : GENMASK(n - 1, 0);
	pmd_t pmd;

	rcu_read_lock();
	pmd = pmdp_get_lockless(vmf->pmd);
	if (pmd_present(pmd) && !pmd_leaf(pmd) && !pmd_bad(pmd))
		candidates = rdax_candidate_ptes((pte_t *)pmd_page_vaddr(pmd) + pte_index(addr), n,
						 protected);
	rcu_read_unlock();
	return candidates;
}

unsigned int rdax_pte_look(struct vm_area_struct *vma, const pte_t *ptep, unsigned long pfn)
{
	pte_t pte = ptep_get((pte_t *)ptep);

	if (pte_none(pte))
		return RDAX_CONST_RDAX_NOTHING;
	if (!pte_present(pte)) {
		/* Markers of what nobody is registered for any more are the core's to remove. */
		return userfaultfd_wp(vma) && pte_is_uffd_wp_marker(pte) ?
			RDAX_CONST_RDAX_MARKED : RDAX_CONST_RDAX_OTHER;
	}
	if (pte_pfn(pte) != pfn || pte_protnone(pte))
		return RDAX_CONST_RDAX_OTHER;
	return pte_uffd(pte) ? RDAX_CONST_RDAX_PROTECTED : RDAX_CONST_RDAX_SAME;
}

/* As after a store. */
static pte_t stored_to(struct vm_area_struct *vma, pte_t pte)
{
	pte = pte_mkyoung(rdax_pte_clear_ahead(pte));
	if (is_writable(vma))
		pte = pte_mkwrite_novma(pte);
	pte = pte_mkdirty(pte);
	return is_writable(vma) ? pte_clear_saveddirty(pte) : pte;
}

/*
 * Writable, but it will be seen whether somebody has stored to it (stores.c). An entry that was
 * written back is soft-dirty still from the stores before. In a VMA that is not watched, all pages
 * count as soft-dirty whatever their entries say, until all are forgotten together.
 */
static pte_t opened(struct vm_area_struct *vma, pte_t pte)
{
	if (!is_writable(vma))
		return pte;
	pte = rdax_pte_mkahead(pte_clear_soft_dirty(pte));
	return pte_clear_saveddirty(pte_mkwrite_novma(pte));
}

static pte_t allowed(struct vm_area_struct *vma, pte_t pte, unsigned int how)
{
	switch (how) {
	case RDAX_CONST_RDAX_STORE:
		return stored_to(vma, pte);
	case RDAX_CONST_RDAX_AHEAD:
		return opened(vma, pte);
	case RDAX_CONST_RDAX_ZERO:
		return pte_mkspecial(pte_wrprotect(pte));
	default:
		return pte;
	}
}

void rdax_ptes_set(struct vm_area_struct *vma, unsigned long addr, pte_t *ptes, unsigned long pfn,
		   unsigned long n, unsigned int how, bool protect)
{
	pte_t pte = allowed(vma, pfn_pte(pfn, vma->vm_page_prot), how);
	pteval_t step = PAGE_SIZE;

	if (protect)
		pte = pte_mkuffd(pte);
	/* Processors do not cache that nothing is mapped at an address. */
	if (IS_ENABLED(CONFIG_PAGE_TABLE_CHECK) || cpu_feature_enabled(X86_FEATURE_XENPV)) {
		set_ptes(vma->vm_mm, addr, ptes, pte, n);
		return;
	}
	/*
	 * The same, where nobody has to be asked for each entry. In a VMA that nobody may access, where a
	 * debugger faults all the same, entries have the complement of their frame.
	 */
	if (__pte_needs_invert(native_pte_val(pte)))
		step = -PAGE_SIZE;
	for (; n; n--, ptes++) {
		native_set_pte(ptes, pte);
		pte = native_make_pte(native_pte_val(pte) + step);
	}
}

/* Whether an entry that is there has to change; the processor may be changing it otherwise. */
static bool adds_rights(unsigned int how)
{
	return how == RDAX_CONST_RDAX_STORE || how == RDAX_CONST_RDAX_AHEAD;
}

void rdax_pte_allow(struct vm_area_struct *vma, pte_t *ptep, unsigned int how)
{
	if (!adds_rights(how))
		return;
	/* No flush: whoever has cached the entry faults, and finds it like this. */
	set_pte(ptep, allowed(vma, ptep_get(ptep), how));
}

/* ---- the second level ---- */

spinlock_t *rdax_pmd_lock(struct vm_fault *vmf)
{
	return pmd_lock(vmf->vma->vm_mm, vmf->pmd);
}

unsigned int rdax_pmd_look(struct vm_fault *vmf, unsigned long pfn)
{
	pmd_t pmd = pmdp_get(vmf->pmd);

	if (pmd_none(pmd))
		return RDAX_CONST_RDAX_NOTHING;
	if (!pmd_present(pmd) || !pmd_leaf(pmd) || pmd_protnone(pmd) || pmd_pfn(pmd) != pfn)
		return RDAX_CONST_RDAX_OTHER;
	return pmd_uffd(pmd) ? RDAX_CONST_RDAX_PROTECTED : RDAX_CONST_RDAX_SAME;
}

static pmd_t allowed_pmd(struct vm_area_struct *vma, pmd_t pmd, unsigned int how)
{
	if (how == RDAX_CONST_RDAX_ZERO)
		return pmd_mkspecial(pmd_wrprotect(pmd));
	if (how != RDAX_CONST_RDAX_STORE)
		return pmd;
	pmd = pmd_mkyoung(pmd);
	if (!is_writable(vma))
		return pmd_mkdirty(pmd);
	return pmd_clear_saveddirty(pmd_mkdirty(pmd_mkwrite_novma(pmd)));
}

void rdax_pmd_set(struct vm_fault *vmf, unsigned long pfn, unsigned int how)
{
	struct vm_area_struct *vma = vmf->vma;
	pmd_t pmd = pmd_mkhuge(pfn_pmd(pfn, vma->vm_page_prot));

	set_pmd_at(vma->vm_mm, vmf->address & PMD_MASK, vmf->pmd, allowed_pmd(vma, pmd, how));
}

void rdax_pmd_allow(struct vm_fault *vmf, unsigned int how)
{
	if (adds_rights(how))
		set_pmd(vmf->pmd, allowed_pmd(vmf->vma, pmdp_get(vmf->pmd), how));
}

/* ---- the third level ---- */

spinlock_t *rdax_pud_lock(struct vm_fault *vmf)
{
	return pud_lock(vmf->vma->vm_mm, vmf->pud);
}

unsigned int rdax_pud_look(struct vm_fault *vmf, unsigned long pfn)
{
	pud_t pud = pudp_get(vmf->pud);

	if (pud_none(pud))
		return RDAX_CONST_RDAX_NOTHING;
	if (!pud_present(pud) || !pud_leaf(pud) || pud_pfn(pud) != pfn)
		return RDAX_CONST_RDAX_OTHER;
	return RDAX_CONST_RDAX_SAME;
}

/* Called by ftrace's callback. */
notrace bool rdax_pud_is_broken(pud_t *entry)
{
	pud_t pud = pudp_get(entry);

	if (pud_none(pud) || !pud_bad(pud))
		return false;
	return !pud_leaf(pud) || !pfn_valid(pud_pfn(pud)) ||
	       !is_zone_device_page(pfn_to_page(pud_pfn(pud)));
}

static pud_t allowed_pud(struct vm_area_struct *vma, pud_t pud, unsigned int how)
{
	if (how != RDAX_CONST_RDAX_STORE)
		return pud;
	pud = pud_mkyoung(pud);
	if (!is_writable(vma))
		return pud_mkdirty(pud);
	return pud_clear_saveddirty(pud_mkdirty(pud_mkwrite(pud)));
}

void rdax_pud_set(struct vm_fault *vmf, unsigned long pfn, unsigned int how)
{
	struct vm_area_struct *vma = vmf->vma;
	pud_t pud = pud_mkhuge(pfn_pud(pfn, vma->vm_page_prot));

	set_pud_at(vma->vm_mm, vmf->address & PUD_MASK, vmf->pud, allowed_pud(vma, pud, how));
}

void rdax_pud_allow(struct vm_fault *vmf, unsigned int how)
{
	if (adds_rights(how))
		set_pud(vmf->pud, allowed_pud(vmf->vma, pudp_get(vmf->pud), how));
}

void rdax_level_unlock(spinlock_t *lock)
{
	spin_unlock(lock);
}

/* ---- counts ---- */

/*
 * The part of _nr_pages_mapped that counts entries which map a whole folio (mm/internal.h has it for the
 * core alone). The tests compare the count after the entries are gone.
 */
#define WHOLE	0x800000

/* For a folio that becomes mapped: who has used it by another mapping is of no interest. */
static void forget_use(struct folio *folio)
{
	if (folio_test_referenced(folio))
		folio_clear_referenced(folio);
}

unsigned long rdax_map_small(struct page *page, unsigned long n, unsigned long *mapped)
{
	struct page *first = page;

	for (; n && !PageCompound(page); n--, page++) {
		page_ref_inc(page);
		if (atomic_inc_and_test(&page->_mapcount)) {
			forget_use((struct folio *)page);
			(*mapped)++;
		}
	}
	return page - first;
}

unsigned long rdax_folio_map_some(struct folio *folio, struct page *page, unsigned long n,
				  struct vm_area_struct *vma)
{
#ifdef CONFIG_NO_PAGE_MAPCOUNT
	/* Counted as mapped all of it, from the first entry to the last. */
	if (folio_add_return_large_mapcount(folio, n, vma) != n)
		return 0;
	forget_use(folio);
	return folio_nr_pages(folio);
#else
	unsigned long first = 0;

	folio_add_large_mapcount(folio, n, vma);
	if (folio_large_mapcount(folio) == n)
		forget_use(folio);
	for (; n; n--, page++)
		first += atomic_inc_and_test(&page->_mapcount);
	/* Those that an entry for the whole folio maps are counted. */
	if (!first || atomic_add_return_relaxed(first, &folio->_nr_pages_mapped) >= WHOLE)
		return 0;
	return first;
#endif
}

bool rdax_large_folio_is_held(struct folio *folio)
{
	bool held;

	/* The map count does not change while the references are read. */
	folio_lock_large_mapcount(folio);
	held = folio_ref_count(folio) > folio_large_mapcount(folio);
	folio_unlock_large_mapcount(folio);
	return held;
}

int rdax_folio_entire_mapcount(const struct folio *folio)
{
	return folio_entire_mapcount(folio);
}

unsigned long rdax_folio_map_whole(struct folio *folio, struct vm_area_struct *vma, bool *first)
{
#ifdef CONFIG_NO_PAGE_MAPCOUNT
	*first = atomic_inc_and_test(&folio->_entire_mapcount);
	return folio_add_return_large_mapcount(folio, 1, vma) == 1 ? folio_nr_pages(folio) : 0;
#else
	int mapped;

	folio_add_large_mapcount(folio, 1, vma);
	*first = atomic_inc_and_test(&folio->_entire_mapcount);
	if (!*first)
		return 0;
	mapped = atomic_add_return_relaxed(WHOLE, &folio->_nr_pages_mapped);
	/* One that is being taken away still counts: who does that leaves the pages counted. */
	if (mapped >= 2 * WHOLE) {
		*first = false;
		return 0;
	}
	mapped &= WHOLE - 1;
	return folio_nr_pages(folio) - mapped;
#endif
}

unsigned long rdax_file_pages_mapped(struct mm_struct *mm)
{
	return get_mm_counter(mm, MM_FILEPAGES);
}

void rdax_count_mapped(struct mm_struct *mm, struct folio *folio, unsigned long added,
		       unsigned long mapped, unsigned long mapped_by_pmd)
{
	/* As add_mm_counter() does it, without its event for tracing, which is not for modules. */
	percpu_counter_add(&mm->rss_stat[mm_counter_file(folio)], added);
	if (mapped)
		mod_node_page_state(folio_pgdat(folio), NR_FILE_MAPPED, mapped);
	if (mapped_by_pmd)
		mod_node_page_state(folio_pgdat(folio), NR_FILE_PMDMAPPED, mapped_by_pmd);
}

/* ---- zeroes ---- */

/*
 * The core's folio of zeroes is the only one that it expects in an entry that is not counted. It is
 * not for modules, but the function that gives it is found by its name, and called as if it were
 * named here.
 */
DEFINE_STATIC_CALL_RET0(rdax_zero_folio, mm_get_huge_zero_folio);

void rdax_zero_folio_find(void)
{
	static const char *const name[] = { "mm_get_huge_zero_folio" };
	unsigned long entry;

	if (rdax_function_entries(name, &entry, 1) == 1)
		static_call_update(rdax_zero_folio, (typeof(&mm_get_huge_zero_folio))entry);
}

#ifdef RDAX_TEST
static bool withheld;

void rdax_test_withhold_zeroes(bool withhold)
{
	withheld = withhold;
}
#else
static const bool withheld;
#endif

unsigned long rdax_zero_folio_pfn(struct vm_fault *vmf)
{
	struct folio *folio = static_call(rdax_zero_folio)(vmf->vma->vm_mm);

	return folio && !withheld ? folio_pfn(folio) : 0;
}
