// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fuzz target: the kernel's own code that reads baselines and overlays, fed
 * with whole blobs. Beside crashes it looks for the code's promises: nothing
 * is changed, every refusal has an error number and a printable reason, nothing
 * is leaked, and any allocation may fail.
 *
 * The mutator knows device trees: most of what is mutated blindly would not get
 * past the check of the structure.
 */
#include <assert.h>

#include "core.c"
#include "parse.c"
#include "plan.c"

/* What the kernel has elsewhere: a machine, a pool, two instances */

static struct mk_chunk chunks[2];
static struct mk_region regions[3];
static struct mk_instance insts[2];
static unsigned int fail_in;
static bool pool_there;

static const struct { u64 start, size; } chunk_at[] = {
	{ 0x40000000, 0x20000000 }, { 0x100000000, 0x40000000 },
};

bool cpu_online(unsigned int cpu)
{
	assert(cpu < 8);
	return cpu < 2 || cpu > 5;
}

bool node_online(int nid)
{
	assert(nid >= 0 && nid < MAX_NUMNODES);
	return nid < 2;
}

/* Physical ids that are not the numbers, as with SMT */
u64 arch_mk_phys_cpu(unsigned int cpu)
{
	assert(cpu < 8);
	return 2 * cpu;
}

int arch_mk_cpu_from_phys(u64 phys)
{
	return phys < 16 && phys % 2 == 0 ? (int)(phys / 2) : -ENODEV;
}

bool arch_mk_is_spawn(void)
{
	return false;
}

bool mk_pool_exists(void)
{
	return pool_there;
}

int mk_instance_removable(enum mk_state state)
{
	if (state == MK_STATE_LOADED || state == MK_STATE_ACTIVE)
		return mk_fail(-EBUSY, "the instance is in use");
	return 0;
}

void *kzalloc(size_t size, int flags)
{
	(void)flags;
	if (fail_in && !--fail_in)
		return NULL;
	return calloc(1, size);
}

static void add_region(int i, struct mk_instance *inst, struct mk_chunk *chunk, u64 offset,
		       u64 size)
{
	regions[i].chunk = chunk;
	regions[i].start = chunk->start + offset;
	regions[i].size = size;
	list_add_tail(&regions[i].link, &inst->regions);
	inst->mem_size += size;
}

static void add_instance(int i, const char *name, enum mk_state state, unsigned int cpu,
			 unsigned int cpu2)
{
	INIT_LIST_HEAD(&insts[i].regions);
	strscpy(insts[i].name, name);
	insts[i].id = i + 1;
	insts[i].serial = i + 1;
	insts[i].state = state;
	insts[i].boot_cpu = cpu;
	cpumask_set_cpu(cpu, &insts[i].cpus);
	cpumask_set_cpu(cpu2, &insts[i].cpus);
	list_add_tail(&insts[i].link, &mk_instances);
}

static void world_make(void)
{
	for (int i = 0; i < 2; i++) {
		chunks[i].start = chunk_at[i].start;
		chunks[i].size = chunk_at[i].size;
		list_add_tail(&chunks[i].link, &mk_pool.chunks);
	}
	for (int cpu = 2; cpu < 6; cpu++)
		cpumask_set_cpu(cpu, &mk_pool.cpus);
	cpumask_set_cpu(5, &mk_pool.cpus_free);
	add_instance(0, "web", MK_STATE_ACTIVE, 2, 3);
	add_instance(1, "db", MK_STATE_READY, 4, 4);
	add_region(0, &insts[0], &chunks[0], 0, 0x8000000);
	add_region(1, &insts[0], &chunks[0], 0x10000000, 0x8000000);
	add_region(2, &insts[1], &chunks[1], 0, 0x10000000);
}

/* Everything that must not change, addresses of list entries included */
static u64 world_sum(void)
{
	const struct { const void *data; size_t size; } parts[] = {
		{ &mk_pool, sizeof(mk_pool) }, { chunks, sizeof(chunks) },
		{ regions, sizeof(regions) }, { insts, sizeof(insts) },
		{ &mk_instances, sizeof(mk_instances) },
	};
	u64 sum = 0xcbf29ce484222325;

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
		for (size_t j = 0; j < parts[i].size; j++)
			sum = (sum ^ ((const u8 *)parts[i].data)[j]) * 0x100000001b3;
	return sum;
}

static void check_text(const char *text, size_t size)
{
	size_t len = strnlen(text, size);

	assert(len && len < size);
	while (len--)
		assert(isprint((unsigned char)text[len]));
}

static void check_result(int ret)
{
	switch (ret) {
	case 0:
		return;
	case -ENOMEM:
		break;
	case -E2BIG: case -EBUSY: case -EEXIST: case -EINVAL: case -ENODEV: case -ENOENT:
	case -ENOSPC: case -EOPNOTSUPP: case -EPERM:
		assert(mk_reason[0]);
		break;
	default:
		assert(!"an error number that is not documented");
	}
	check_text(mk_reason_text(), MK_REASON_LEN);
}

static void try_baseline(const void *fdt)
{
	struct mk_baseline *base = calloc(1, sizeof(*base));
	int ret;

	mk_reason_reset();
	ret = mk_parse_baseline(fdt, base);
	check_result(ret);
	if (!ret) {
		assert(base->nr_mem && base->nr_mem <= MAX_NUMNODES && cpumask_weight(&base->cpus));
		assert(!cpumask_test_cpu(0, &base->cpus));
		for (unsigned int i = 0; i < base->nr_mem; i++)
			assert(base->mem[i].size && PAGE_ALIGNED(base->mem[i].size));
	}
	free(base);
}

static void try_overlay(const void *fdt)
{
	struct mk_overlay overlay = { };
	int ret;

	INIT_LIST_HEAD(&overlay.ops);
	mk_reason_reset();
	ret = mk_parse_overlay(fdt, &overlay);
	assert(overlay.nr_ops <= MK_OPS_MAX);
	if (!ret)
		ret = mk_plan_check(&overlay.ops, overlay.what);
	check_result(ret);
	check_text(overlay.what, sizeof(overlay.what));
	mk_ops_free(&overlay.ops);
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static u64 sum;
	u64 hash = size;
	u8 *blob;

	if (!sum) {
		world_make();
		sum = world_sum();
	}
	/* Exactly as large as the blob, so that a byte too far is seen */
	blob = aligned_alloc(8, ALIGN(size, 8) ?: 8);
	memcpy(blob, data, size);
	blob = realloc(blob, size ?: 1);
	for (size_t i = 0; i < size; i++)
		hash = hash * 31 + data[i];

	if (!mk_dt_check_header(blob, size)) {
		/* Of four inputs one meets a machine that is short of memory */
		fail_in = hash % 4 ? 0 : 1 + hash / 4 % 24;
		pool_there = hash / 128 % 8;
		try_baseline(blob);
		try_overlay(blob);
		fail_in = 0;
	}
	assert(world_sum() == sum);
	free(blob);
	return 0;
}

/* The mutator */

size_t LLVMFuzzerMutate(u8 *data, size_t size, size_t max);

static const char * const names[] = {
	"resources", "instances", "devices", "memory@0", "memory@1", "cpu@2", "cpu@a", "fragment@0",
	"fragment@1", "fragment@f", "__overlay__", "instance-create", "instance-remove", "cpu-add",
	"cpu-remove", "memory-add", "memory-remove", "device-add", "device-remove", "pci@0",
	"virtio", "net@0", "a-name-of-16-ch@1",
};

static const char * const props[] = {
	"cpus", "size", "reg", "numa-node-id", "numa-nodes", "memory-bytes", "memory-base",
	"target-path", "instance-name", "id", "mk,resources", "compatible",
	"device-id", "queues", "queue-size",
};

static const char * const strings[] = {
	"/resources", "/instances", "/instances/web", "/instances/db", "/instances/new", "web", "db",
	"new", "", ".", "..",
};

/* Numbers that mean something in this world, and some that mean trouble */
static const u64 numbers[] = {
	0, 2, 4, 6, 8, 10, 12, 14, 16, 1, 511, 512, 0x1000, 0x2000000, 0x8000000, 0x10000000,
	0x20000000, 0x40000000, 0x48000000, 0x50000000, 0x58000000, 0x100000000, 0x110000000,
	0xfffffffffffff000, 0x7ffffffffffff000, 0xffffffffffffffff,
};

#define PICK(array) (array[rand() % (sizeof(array) / sizeof(array[0]))])

static int random_node(const void *fdt)
{
	int node = 0, next, n = rand() % 24;

	while (n-- && (next = fdt_next_node(fdt, node, NULL)) >= 0)
		node = next;
	return node;
}

static void mutate_property(void *fdt, int node)
{
	u8 val[64];
	size_t i, len;

	switch (rand() % 4) {
	case 0:
		len = sizeof(u32);
		break;
	case 1:
		len = rand() % sizeof(val);
		break;
	default:
		len = sizeof(u64) * (1 + rand() % 3);
	}
	for (i = 0; i < len; i += sizeof(u64)) {
		u64 number = __builtin_bswap64(PICK(numbers));

		memcpy(val + i, &number, min(sizeof(number), sizeof(val) - i));
	}
	if (len == sizeof(u32))
		memmove(val, val + 4, 4);
	fdt_setprop(fdt, node, PICK(props), val, len);
}

static void mutate_tree(void *fdt)
{
	int node = random_node(fdt);
	const char *name, *text = PICK(strings);

	switch (rand() % 8) {
	case 0:
		if (node)
			fdt_del_node(fdt, node);
		break;
	case 1:
	case 2:
		fdt_add_subnode(fdt, node, PICK(names));
		break;
	case 3:
		fdt_set_name(fdt, node, PICK(names));
		break;
	case 4:
		/* a macro that evaluates the text twice */
		fdt_setprop_string(fdt, node, PICK(props), text);
		break;
	case 5:
		node = fdt_first_property_offset(fdt, node);
		if (node >= 0 && fdt_getprop_by_offset(fdt, node, &name, NULL))
			fdt_delprop(fdt, random_node(fdt), name);
		break;
	default:
		mutate_property(fdt, node);
	}
}

/* libfdt's functions that write trust the layout, and what they write to is fdt_open_into()'s copy */
static bool is_editable(const void *fdt, size_t size)
{
	return !mk_dt_check_header(fdt, size) && !mk_dt_check_structure(fdt) &&
	       fdt_off_mem_rsvmap(fdt) == sizeof(struct fdt_header) && fdt_num_mem_rsv(fdt) == 0 &&
	       fdt_off_dt_struct(fdt) == sizeof(struct fdt_header) + sizeof(struct fdt_reserve_entry) &&
	       fdt_off_dt_strings(fdt) == fdt_off_dt_struct(fdt) + fdt_size_dt_struct(fdt);
}

size_t LLVMFuzzerCustomMutator(u8 *data, size_t size, size_t max, unsigned int seed)
{
	size_t room = min(max, size + 1024);
	u8 *tree;

	srand(seed);
	if (rand() % 4 == 0 || room < 64 || !is_editable(data, size))
		return LLVMFuzzerMutate(data, size, max);

	tree = calloc(1, room);
	if (fdt_open_into(data, tree, room)) {
		free(tree);
		return LLVMFuzzerMutate(data, size, max);
	}
	for (int n = 1 + rand() % 4; n; n--)
		mutate_tree(tree);
	fdt_pack(tree);
	size = fdt_totalsize(tree);
	/* Some bytes blindly, behind the header */
	if (rand() % 8 == 0 && size > 40)
		LLVMFuzzerMutate(tree + 40, size - 40, size - 40);
	memcpy(data, tree, size);
	free(tree);
	return size;
}
