#!/usr/bin/env python3
"""How fast are copies between host and GPU, by the CUDA driver alone?

    python3 tools/cuda_copies.py --read models/base/model-00001-of-00003.safetensors
    python3 tools/cuda_copies.py --write-combined --read models/base/model-00001-of-00003.safetensors

Pinned memory is plain or write-combined. Copies of it to the GPU, back and both at once, and copies on the GPU, are
timed with nothing else running; so are reads of a file into the pinned memory, by one thread and by all. The output
is JSON, with rates in GB/s. Neither mergeforge nor torch is involved: the driver is called through ctypes.
"""

import argparse
import concurrent.futures
import ctypes
import itertools
import json
import os
import pathlib
import statistics
import sys
import threading
import time
from collections.abc import Callable

# Flags of cuMemHostAlloc and cuStreamCreate.
WRITE_COMBINED = 4
NON_BLOCKING = 1

# Reads are as large as mergeforge's chunks of a few inputs, each thread's into memory of its own that it uses again.
READ_BYTES = 1 << 20
THREAD_BYTES = 16 << 20


class Driver:
    """The primary context of a GPU."""

    def __init__(self, ordinal: int) -> None:
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            sys.exit(f"error: {error}")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()

    def call(self, function: str, *arguments: object) -> None:
        code = getattr(self.library, function)(*arguments)
        if code:
            sys.exit(f"error: {function} gave {code}")

    def stream(self) -> ctypes.c_void_p:
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), NON_BLOCKING)
        return stream

    def device_memory(self, size: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address

    def pinned_memory(self, size: int, flags: int) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size), flags)
        return pointer


def copies(driver: Driver, size: int, count: int, repeat: int, flags: int) -> dict[str, float]:
    """GB/s of each way; where both are used at once, of each of them."""
    there = [driver.device_memory(size) for _ in range(2)]
    start = time.perf_counter()
    here = [driver.pinned_memory(size, flags) for _ in range(2)]
    pinning_s = time.perf_counter() - start
    for pointer in here:
        ctypes.memset(pointer, 1, size)
    one, other = driver.stream(), driver.stream()
    bytes_ = ctypes.c_size_t(size)

    def to_device() -> None:
        driver.call("cuMemcpyHtoDAsync_v2", there[0], here[0], bytes_, one)

    def from_device() -> None:
        driver.call("cuMemcpyDtoHAsync_v2", here[1], there[1], bytes_, other)

    def on_device() -> None:
        driver.call("cuMemcpyDtoDAsync_v2", there[1], there[0], bytes_, one)

    def both() -> None:
        to_device()
        from_device()

    def rate(copy: Callable[[], None], moved: int = size) -> float:
        rates = []
        # The first turn warms up.
        for turn in range(repeat + 1):
            start = time.perf_counter()
            for _ in range(count):
                copy()
            for stream in (one, other):
                driver.call("cuStreamSynchronize", stream)
            if turn:
                rates.append(moved * count / 1e9 / (time.perf_counter() - start))
        return statistics.median(rates)

    return {
        "pinning_s_per_gb": pinning_s / (2 * size / 1e9),
        "to_device": rate(to_device),
        "from_device": rate(from_device),
        "both_each_way": rate(both),
        # Each byte is read and written.
        "on_device": rate(on_device, 2 * size),
    }


def reads(driver: Driver, file: pathlib.Path, threads: int, flags: int) -> float:
    """GB/s of reads from the page cache into pinned memory."""
    handle = os.open(file, os.O_RDONLY)
    size = os.fstat(handle).st_size
    pinned = driver.pinned_memory(threads * THREAD_BYTES, flags)
    memory = memoryview((ctypes.c_char * (threads * THREAD_BYTES)).from_address(pinned.value)).cast("B")
    gate = threading.Barrier(threads + 1)

    def read(thread: int) -> None:
        gate.wait()
        # Every thread reads its own part of the file, and writes round and round in its own memory.
        slots = itertools.cycle(range(thread * THREAD_BYTES, (thread + 1) * THREAD_BYTES, READ_BYTES))
        at, end = thread * size // threads, (thread + 1) * size // threads
        while at < end:
            slot = next(slots)
            at += os.preadv(handle, [memory[slot : slot + min(READ_BYTES, end - at)]], at)

    rates = []
    for _ in range(2):
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(read, thread) for thread in range(threads)]
            gate.wait()
            start = time.perf_counter()
            for one in running:
                one.result()
        rates.append(size / 1e9 / (time.perf_counter() - start))
    os.close(handle)
    # In the first, the page cache may not have had the file.
    return rates[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=int, default=0, help="the GPU's number [%(default)s]")
    parser.add_argument("--write-combined", action="store_true", help="pinned memory is write-combined")
    parser.add_argument("--read", type=pathlib.Path, metavar="FILE", help="a file in the page cache, some GB long")
    parser.add_argument("--mib", type=int, default=256, help="of a copy [%(default)s]")
    parser.add_argument("--count", type=int, default=8, help="copies one after the other [%(default)s]")
    parser.add_argument("--repeat", type=int, default=7, help="of which the median counts [%(default)s]")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    flags = WRITE_COMBINED if args.write_combined else 0
    driver = Driver(args.device)
    found = {"device": driver.name, "memory": "write-combined" if args.write_combined else "plain"}
    found |= copies(driver, args.mib << 20, args.count, args.repeat, flags)
    if args.read:
        found["read_one_thread"] = reads(driver, args.read, 1, flags)
        found["read_all_threads"] = reads(driver, args.read, args.threads, flags)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
