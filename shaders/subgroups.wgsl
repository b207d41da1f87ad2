// Counting by all invocations of a workgroup, where the device has subgroups: one atomic operation a subgroup.
//
// Made for devices with the feature; no_subgroups.wgsl is for the others.

fn sum_of_neighbours(count: u32) -> u32 { return subgroupAdd(count); }
fn speaks_for_neighbours(thread: u32) -> bool { return subgroupBroadcastFirst(thread) == thread; }
// The bin of one of a subgroup's invocations: any will do.
fn bin_of_neighbours(bin: i32) -> i32 { return subgroupBroadcastFirst(bin); }
