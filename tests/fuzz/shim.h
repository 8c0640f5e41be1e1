/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * As much of the kernel's headers as kernel/multikernel/{core,parse,plan}.c
 * need, for user space. `run` makes every kernel header that they include one
 * that includes this file, but for those of multikernel itself and libfdt.
 */
#ifndef SHIM_H
#define SHIM_H

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int32_t s32;
typedef uint64_t phys_addr_t;
typedef uint64_t resource_size_t;
/* As in the kernel, "%llu" prints it */
typedef unsigned long long u64;
typedef unsigned int umode_t;
typedef struct {
	int counter;
} atomic_t;

struct range {
	u64 start;
	u64 end;
};

#define __user
#define __init
#define __aligned(n)		__attribute__((aligned(n)))
#define __printf(fmt, arg)	__attribute__((format(printf, fmt, arg)))
#define fs_initcall(fn)		static int (*const shim_initcall)(void) __attribute__((unused)) = fn

#define pr_err_ratelimited(...)	fprintf(stderr, __VA_ARGS__)
#define READ_ONCE(x)		(x)
#define WRITE_ONCE(x, v)	((x) = (v))
#define smp_load_acquire(p)	(*(p))
#define smp_store_release(p, v)	(*(p) = (v))
#define smp_rmb()		do { } while (0)

#define PAGE_SIZE		4096UL
#define SZ_4K			0x00001000
#define SZ_16K			0x00004000
#define SZ_32K			0x00008000
#define SZ_64K			0x00010000
#define SZ_128K			0x00020000
#define SZ_256K			0x00040000
#define SZ_512K			0x00080000
#define SZ_1M			0x00100000
#define SZ_2M			0x00200000
#define SZ_32M			0x02000000
#define SZ_128M			0x08000000

#define IS_ENABLED(option)	1
#define is_power_of_2(n)	((n) && !((n) & ((n) - 1)))
#define IS_ALIGNED(x, a)	(((x) & ((typeof(x))(a) - 1)) == 0)
#define PAGE_ALIGNED(x)		IS_ALIGNED((unsigned long long)(x), PAGE_SIZE)
#define ALIGN(x, a)		(((x) + (a) - 1) & ~((typeof(x))(a) - 1))
#define min(a, b)		((a) < (b) ? (a) : (b))
#define min_t(type, a, b)	min((type)(a), (type)(b))
#define check_add_overflow(a, b, d) __builtin_add_overflow(a, b, d)
#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

/* Locks: one thread */
struct mutex { int unused; };
typedef struct { int unused; } spinlock_t;
#define DEFINE_MUTEX(name)	struct mutex name
#define lockdep_assert_held(m)	((void)(m))

struct kref { int count; };

struct resource {
	resource_size_t start, end;
	const char *name;
	struct resource *child, *sibling, *parent;
};

/* Lists */
struct list_head { struct list_head *next, *prev; };
#define LIST_HEAD_INIT(name)	{ &(name), &(name) }
#define LIST_HEAD(name)		struct list_head name = LIST_HEAD_INIT(name)

static inline void INIT_LIST_HEAD(struct list_head *list)
{
	list->next = list->prev = list;
}

static inline void list_add_tail(struct list_head *entry, struct list_head *head)
{
	entry->prev = head->prev;
	entry->next = head;
	head->prev->next = entry;
	head->prev = entry;
}

static inline void list_del(struct list_head *entry)
{
	entry->prev->next = entry->next;
	entry->next->prev = entry->prev;
	entry->next = entry->prev = NULL;
}

#define list_entry(ptr, type, member)	container_of(ptr, type, member)
#define list_is_first(entry, head)	((entry)->prev == (head))
#define list_entry_is_head(pos, head, member) (&(pos)->member == (head))
#define list_first_entry(head, type, member) list_entry((head)->next, type, member)
#define list_next_entry(pos, member)	list_entry((pos)->member.next, typeof(*(pos)), member)
#define list_for_each_entry(pos, head, member)				\
	for (pos = list_first_entry(head, typeof(*pos), member);	\
	     !list_entry_is_head(pos, head, member);			\
	     pos = list_next_entry(pos, member))
#define list_for_each_entry_safe(pos, n, head, member)			\
	for (pos = list_first_entry(head, typeof(*pos), member),	\
	     n = list_next_entry(pos, member);				\
	     !list_entry_is_head(pos, head, member);			\
	     pos = n, n = list_next_entry(n, member))

/* CPUs and nodes: the bounds of these masks are the sanitizer's to check */
#define NR_CPUS			64
#define MAX_NUMNODES		64
#define NUMA_NO_NODE		(-1)
struct cpumask { bool cpu[NR_CPUS]; };

static inline void cpumask_clear(struct cpumask *m)
{
	memset(m, 0, sizeof(*m));
}

static inline void cpumask_copy(struct cpumask *to, const struct cpumask *from)
{
	*to = *from;
}

static inline bool cpumask_test_cpu(unsigned int cpu, const struct cpumask *m)
{
	return m->cpu[cpu];
}

static inline void cpumask_set_cpu(unsigned int cpu, struct cpumask *m)
{
	m->cpu[cpu] = true;
}

static inline void cpumask_clear_cpu(unsigned int cpu, struct cpumask *m)
{
	m->cpu[cpu] = false;
}

static inline bool cpumask_test_and_set_cpu(unsigned int cpu, struct cpumask *m)
{
	bool old = m->cpu[cpu];

	m->cpu[cpu] = true;
	return old;
}

static inline void cpumask_or(struct cpumask *to, const struct cpumask *a, const struct cpumask *b)
{
	for (int i = 0; i < NR_CPUS; i++)
		to->cpu[i] = a->cpu[i] || b->cpu[i];
}

static inline void cpumask_andnot(struct cpumask *to, const struct cpumask *a,
				  const struct cpumask *b)
{
	for (int i = 0; i < NR_CPUS; i++)
		to->cpu[i] = a->cpu[i] && !b->cpu[i];
}

static inline unsigned int cpumask_weight(const struct cpumask *m)
{
	unsigned int n = 0;

	for (int i = 0; i < NR_CPUS; i++)
		n += m->cpu[i];
	return n;
}

#define for_each_cpu(i, m) for (i = 0; i < NR_CPUS; i++) if (!(m)->cpu[i]) { } else

/* The machine, in fuzz.c */
bool cpu_online(unsigned int cpu);
bool node_online(int nid);

/* Memory: fuzz.c lets allocations fail */
#define GFP_KERNEL 0
void *kzalloc(size_t size, int flags);
#define kzalloc_obj(object)	kzalloc(sizeof(object), GFP_KERNEL)	/* in newer kernels */
#define kfree(p) free(p)

/* Strings */

static inline bool strstarts(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

static inline void shim_strscpy(char *to, const char *from, size_t size)
{
	size_t len = strnlen(from, size - 1);

	memcpy(to, from, len);
	to[len] = '\0';
}

/* As the kernel's, with two arguments for an array */
#define strscpy_2(to, from)		shim_strscpy(to, from, sizeof(to))
#define strscpy_3(to, from, size)	shim_strscpy(to, from, size)
#define strscpy_n(a, b, c, name, ...)	name
#define strscpy(...)	strscpy_n(__VA_ARGS__, strscpy_3, strscpy_2)(__VA_ARGS__)

static inline int vscnprintf(char *buf, size_t size, const char *fmt, va_list args)
{
	int len = vsnprintf(buf, size, fmt, args);

	return len < (int)size ? len : (int)size - 1;
}

static inline __printf(3, 4) int scnprintf(char *buf, size_t size, const char *fmt, ...)
{
	va_list args;
	int len;

	va_start(args, fmt);
	len = vscnprintf(buf, size, fmt, args);
	va_end(args);
	return len;
}

/* As the kernel's: digits only, one newline at the end is allowed */
static inline int kstrtou32(const char *s, unsigned int base, u32 *res)
{
	unsigned long long val;
	char *end;

	if (!isalnum((unsigned char)*s))
		return -EINVAL;
	errno = 0;
	val = strtoull(s, &end, base);
	if (*end == '\n')
		end++;
	if (*end)
		return -EINVAL;
	if (errno || val > UINT32_MAX)
		return -ERANGE;
	*res = val;
	return 0;
}

static inline u32 get_unaligned_be32(const void *p)
{
	u32 v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap32(v);
}

static inline u64 get_unaligned_be64(const void *p)
{
	u64 v;

	memcpy(&v, p, sizeof(v));
	return __builtin_bswap64(v);
}

#define sort(base, num, size, cmp, swap) qsort(base, num, size, cmp)

#endif /* SHIM_H */
