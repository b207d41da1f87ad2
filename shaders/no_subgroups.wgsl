// Counting by all invocations of a workgroup, where the device has no subgroups: each speaks for itself.
//
// The counterpart of subgroups.wgsl.

fn sum_of_neighbours(count: u32) -> u32 { return count; }
fn speaks_for_neighbours(thread: u32) -> bool { return true; }
fn bin_of_neighbours(bin: i32) -> i32 { return -1; }
