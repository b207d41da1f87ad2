//! What a forward pass computes, on numbers that stay in a GPU's memory: products by cuBLAS, the rest by `kernels/forward/decoder.cu`.
//!
//! A product is nearly as exact as in f32, at the speed of tensor cores: each factor is split into three terms of bfloat16, which
//! together are the number to 24 bits, and the products of terms are added up in f32, but for those that are too small to matter.
//! Weights that are bfloat16 as stored are one term. What tensor cores lose is what they cut off of sums: so they add up few at a time.
//!
//! All work goes to one stream, so memory that was given back may be used again at once: the device does in order what it is asked
//! for.

use std::sync::Arc;

use super::blas::{Blas, Element, Matrices, Right};
use super::driver::{Context, CudaStream, DeviceMemory, Event, Function, Module, Parameter, Pinned, Region};
pub use super::numbers::{Numbers, Outgoing};
use super::numbers::{Pools, Purpose, bytes_of};
use super::{FAMILY, context_of, driver};
use crate::backend::device::Device;
use crate::backend::gpu::lock;
use crate::error::{Error, Kind, Result};

/// The most numbers that are on their way to the device or from it at a time.
pub const BLOCK: usize = 1 << 22;

/// The queries of a text that attend at a time: their scores are in memory.
pub const QUERIES: usize = 256;

/// The memory of cuBLAS itself, in bytes, as NVIDIA states it for its newest devices.
pub const OF_CUBLAS: u64 = 32 << 20;

/// The most terms of a number.
pub const TERMS: usize = 3;

/// The products of terms that count, the smallest first: those left out are below 2⁻²⁴ of the largest.
const PRODUCTS: [(usize, usize); 6] = [(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)];

/// The most products that tensor cores add up by themselves: they cut sums off where f32 rounds (Ootomo and Yokota,
/// <https://arxiv.org/abs/2203.03341>), and what that loses grows with their number.
const SUMMANDS: usize = 2048;

/// The oldest compute capability whose cuBLAS multiplies bfloat16: Ampere.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// The threads of a block of `decoder.cu`.
const THREADS: u32 = 128;

/// Heads of attention in rows of queries, and of keys and values.
#[derive(Debug, Clone, Copy)]
pub struct HeadSizes {
    /// Those of keys and values.
    pub keys: usize,
    /// The heads of queries that share one of them.
    pub shared_by: usize,
    /// Elements of one.
    pub width: usize,
    /// How many tokens back a token sees, itself included.
    pub window: usize,
}

/// A GPU as a calculator.
#[derive(Debug)]
pub struct Algebra {
    blas: Blas,
    kernels: Kernels,
    staging: [Staging; 2],
    /// Which of them comes next.
    next: usize,
    pools: Arc<Pools>,
    stream: CudaStream,
    context: Arc<Context>,
    id: String,
}

/// The entries of `decoder.cu`.
#[derive(Debug)]
struct Kernels {
    split: Function,
    norm: Function,
    rotate: Function,
    soften: Function,
    gate: Function,
    bias: Function,
    _module: Module,
}

/// Memory through which numbers go to the device and come from it.
#[derive(Debug)]
struct Staging {
    memory: Pinned,
    /// When the device has read what was put there last.
    read: Event,
}

/// A number for so many blocks that each thread has an element.
fn blocks(elements: usize) -> u32 {
    u32::try_from(elements.div_ceil(THREADS as usize)).expect("rooms are far smaller")
}

impl Algebra {
    /// The devices that may be opened.
    ///
    /// # Errors
    /// Kind `Device`: there is no driver.
    pub fn devices() -> Result<Vec<Device>> {
        super::devices()
    }

    /// Opens a device.
    ///
    /// # Errors
    /// Kind `Device`: it is no such device, is too old, or has no cuBLAS. Kind `DeviceMemory`: it is full.
    pub fn open(device: &Device) -> Result<Self> {
        if device.family != &FAMILY {
            let message = format!("{} cannot read texts: only cpu and cuda can", device.id());
            return Err(Error::device(message).hint("use --device cpu"));
        }
        let about = driver::about(device.index)?;
        let (major, minor) = about.capability;
        if about.capability < CAPABILITY_MIN {
            let message = format!(
                "{}: {} has compute capability {major}.{minor}, and reading texts needs 8.0 (Ampere)",
                device.id(),
                about.name
            );
            return Err(Error::device(message).hint("use --device cpu"));
        }
        let context = context_of(device)?;
        let stream = CudaStream::new()?;
        let blas = Blas::new(&stream)?;
        let staging = || -> Result<Staging> {
            let read = Event::new()?;
            read.record(&stream)?;
            Ok(Staging { memory: Pinned::new(BLOCK * size_of::<f32>())?, read })
        };
        let staging = [staging()?, staging()?];
        let (kernels, id) = (Kernels::new()?, device.id());
        Ok(Self { blas, kernels, staging, next: 0, pools: Arc::default(), stream, context, id })
    }

    /// What `--device` takes for it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The free bytes of the device's memory.
    ///
    /// # Errors
    /// Kind `Device`: it fails, here and below.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.free_bytes()
    }

    /// So many zeros, in memory that was given back if any of it is large enough.
    ///
    /// # Errors
    /// Kind `DeviceMemory`: it is full.
    pub fn room(&mut self, len: usize) -> Result<Numbers> {
        self.room_for(Purpose::States, len)
    }

    fn room_for(&mut self, purpose: Purpose, len: usize) -> Result<Numbers> {
        let place = {
            let mut pool = lock(self.pools.of(purpose));
            let size = |place: &usize| pool[*place].bytes();
            let fits = (0..pool.len()).filter(|place| size(place) >= bytes_of(len)).min_by_key(size);
            let largest = || (0..pool.len()).max_by_key(size);
            fits.or_else(largest).map(|place| pool.swap_remove(place))
        };
        match place {
            Some(memory) if memory.bytes() >= bytes_of(len) => self.zeros(purpose, memory, len),
            smaller => {
                if smaller.is_some() {
                    self.finish()?;
                }
                drop(smaller);
                self.new_room(purpose, len)
            }
        }
    }

    /// So many zeros, in memory of exactly that size.
    ///
    /// # Errors
    /// As [`Algebra::room`].
    pub fn lasting_room(&mut self, len: usize) -> Result<Numbers> {
        let found = {
            let mut pool = lock(&self.pools.states);
            let place = pool.iter().position(|memory| memory.bytes() == bytes_of(len));
            place.map(|place| pool.swap_remove(place))
        };
        match found {
            Some(memory) => self.zeros(Purpose::States, memory, len),
            None => self.new_room(Purpose::States, len),
        }
    }

    fn new_room(&mut self, purpose: Purpose, len: usize) -> Result<Numbers> {
        self.context.bind()?;
        let memory = match DeviceMemory::new(bytes_of(len)) {
            Err(full) if full.kind == Kind::DeviceMemory => {
                self.clear()?;
                DeviceMemory::new(bytes_of(len))?
            }
            other => other?,
        };
        self.zeros(purpose, memory, len)
    }

    fn zeros(&self, purpose: Purpose, memory: DeviceMemory, len: usize) -> Result<Numbers> {
        self.context.bind()?;
        // SAFETY: the memory is given back to the device after the stream has come to its end.
        unsafe { self.stream.fill(memory.region(0, (len * size_of::<f32>()) as u64), 0)? };
        Ok(Numbers { memory: Some(memory), len, pools: Arc::clone(&self.pools), purpose })
    }

    /// Gives back to the device what was given back to this.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn clear(&mut self) -> Result<()> {
        self.finish()?;
        lock(&self.pools.states).clear();
        lock(&self.pools.rows).clear();
        Ok(())
    }

    /// The memory of some numbers of this device.
    ///
    /// # Panics
    /// They are another's, whose work is in another order.
    fn some<'n>(&self, numbers: &'n Numbers, first: usize, len: usize) -> Region<'n> {
        assert!(Arc::ptr_eq(&numbers.pools, &self.pools), "numbers stay with their device");
        numbers.some(first, len)
    }

    fn all<'n>(&self, numbers: &'n Numbers) -> Region<'n> {
        self.some(numbers, 0, numbers.len)
    }

    /// Waits for all work.
    fn finish(&self) -> Result<()> {
        self.context.bind()?;
        self.stream.synchronize()
    }

    /// Puts values into a room, from number `first` on.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn put(&mut self, values: &[f32], room: &mut Numbers, first: usize) -> Result<()> {
        self.send(bytemuck::cast_slice(values), room, first)
    }

    /// Puts bytes into a room, from number `first` on.
    fn send(&mut self, bytes: &[u8], room: &mut Numbers, first: usize) -> Result<()> {
        self.context.bind()?;
        let firsts = (first..).step_by(BLOCK);
        for (part, first) in bytes.chunks(BLOCK * size_of::<f32>()).zip(firsts) {
            let staging = &mut self.staging[self.next];
            self.next = 1 - self.next;
            staging.read.synchronize()?;
            staging.memory.bytes_mut()[..part.len()].copy_from_slice(part);
            assert!(Arc::ptr_eq(&room.pools, &self.pools), "numbers stay with their device");
            let to = room.some(first, part.len().div_ceil(size_of::<f32>()));
            // SAFETY: the staging memory is not touched before `read`, and no memory of the device is given back to it before the
            // stream has come to its end.
            unsafe { self.stream.copy_in(&staging.memory, to)? };
            staging.read.record(&self.stream)?;
        }
        Ok(())
    }

    /// Gets values from a room, from number `first` on.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn get(&mut self, room: &Numbers, first: usize, into: &mut [f32]) -> Result<()> {
        self.context.bind()?;
        let firsts = (first..).step_by(BLOCK);
        for (part, first) in into.chunks_mut(BLOCK).zip(firsts) {
            let from = self.some(room, first, part.len());
            let staging = &mut self.staging[self.next];
            staging.read.synchronize()?;
            // SAFETY: as in `send`; what arrives is waited for.
            unsafe { self.stream.copy_out(from, &mut staging.memory)? };
            staging.read.record(&self.stream)?;
            staging.read.synchronize()?;
            let bytes = &staging.memory.bytes()[..size_of_val(part)];
            bytemuck::cast_slice_mut(part).copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Memory for numbers that come from the device while it goes on.
    ///
    /// # Errors
    /// Kind `Device`: there is no more that can be pinned.
    pub fn outgoing(&self, len: usize) -> Result<Outgoing> {
        self.context.bind()?;
        let arrived = Event::new()?;
        arrived.record(&self.stream)?;
        Ok(Outgoing { memory: Pinned::new(len * size_of::<f32>())?, len: 0, arrived })
    }

    /// Begins to copy all numbers of a room out.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    ///
    /// # Panics
    /// There are more than there is memory for.
    pub fn send_out(&mut self, room: &Numbers, to: &mut Outgoing) -> Result<()> {
        self.context.bind()?;
        to.arrived.synchronize()?;
        to.len = 0;
        // SAFETY: who looks at it, and who drops it, waits for `arrived`; no memory of the device is given back to it before the
        // stream has come to its end.
        unsafe { self.stream.copy_out(self.all(room), &mut to.memory)? };
        to.arrived.record(&self.stream)?;
        to.len = room.len;
        Ok(())
    }

    /// Copies so many numbers, between places of two rooms.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn copy(
        &mut self,
        (from, first): (&Numbers, usize),
        (to, at): (&mut Numbers, usize),
        len: usize,
    ) -> Result<()> {
        self.context.bind()?;
        let (from, to) = (self.some(from, first, len), self.some(to, at, len));
        // SAFETY: no memory of the device is given back to it before the stream has come to its end.
        unsafe { self.stream.copy(from, to) }
    }

    /// Values as terms: one, where each is bfloat16, or three.
    ///
    /// # Errors
    /// As [`Algebra::room`].
    pub fn terms_of_values(&mut self, values: &[f32]) -> Result<Terms> {
        const LOW: u32 = 0xffff;
        let narrow = values.iter().fold(0, |bits, value| bits | value.to_bits() & LOW) == 0;
        let len = values.len();
        if narrow {
            let halves: Vec<u16> = values.iter().map(|value| (value.to_bits() >> 16) as u16).collect();
            let mut numbers = self.room_for(Purpose::Rows, len.div_ceil(2))?;
            self.send(bytemuck::cast_slice(&halves), &mut numbers, 0)?;
            return Ok(Terms { numbers, len, count: 1 });
        }
        let mut raw = self.room_for(Purpose::Rows, len)?;
        self.put(values, &mut raw, 0)?;
        self.terms_for(Purpose::Rows, &raw, 0, len)
    }

    /// So many numbers of a room as three terms each.
    ///
    /// # Errors
    /// As [`Algebra::room`].
    pub fn terms_of(&mut self, room: &Numbers, first: usize, len: usize) -> Result<Terms> {
        self.terms_for(Purpose::States, room, first, len)
    }

    fn terms_for(&mut self, purpose: Purpose, room: &Numbers, first: usize, len: usize) -> Result<Terms> {
        let numbers = self.room_for(purpose, (len * TERMS).div_ceil(2))?;
        let parameters = [
            Parameter::Place(self.some(room, first, len)),
            Parameter::Place(self.all(&numbers)),
            Parameter::Long(len as u64),
        ];
        self.start(self.kernels.split, blocks(len), &parameters)?;
        Ok(Terms { numbers, len, count: TERMS })
    }

    /// Adds `x · Wᵀ` to columns `first..end` of `y`, which has rows of `width`; rows of `x` and of `W` have `inputs` columns.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn add_product(
        &mut self,
        x: &Terms,
        rows: &Terms,
        inputs: usize,
        y: &mut Numbers,
        (first, end, width): (usize, usize, usize),
    ) -> Result<()> {
        self.context.bind()?;
        let tokens = x.len / inputs;
        let all = Matrices::of(self.some(y, 0, tokens * width), Element::F32, tokens, width);
        let sums = Matrices { first, columns: end - first, ..all };
        for (of_x, of_rows) in
            PRODUCTS.into_iter().filter(|(of_x, of_rows)| *of_x < x.count && *of_rows < rows.count)
        {
            for first in (0..inputs).step_by(SUMMANDS) {
                let part = first..inputs.min(first + SUMMANDS);
                let left = x.matrix(of_x, inputs).columns(&part);
                let right = (rows.matrix(of_rows, inputs).columns(&part), Right::Transposed);
                // SAFETY: no memory of the device is given back to it before the stream has come to its end.
                unsafe { self.blas.multiply(1.0, left, right, true, sums, 1)? };
            }
        }
        Ok(())
    }

    /// Brings rows as long as `weight` to a mean square of 1, and multiplies them with it.
    ///
    /// # Errors
    /// As [`Algebra::room`].
    pub fn norm(&mut self, rows: &mut Numbers, weight: &[f32], epsilon: f32) -> Result<()> {
        let mut own = self.room_for(Purpose::Rows, weight.len())?;
        self.put(weight, &mut own, 0)?;
        let count = u32::try_from(rows.len() / weight.len()).expect("rooms are far smaller");
        let parameters = [
            Parameter::Place(self.all(rows)),
            Parameter::Place(self.all(&own)),
            Parameter::Place(self.all(rows)),
            Parameter::Word(weight.len() as u32),
            Parameter::Number(epsilon),
        ];
        self.start(self.kernels.norm, count, &parameters)
    }

    /// Adds a bias to each row.
    ///
    /// # Errors
    /// As [`Algebra::room`].
    pub fn add_bias(&mut self, rows: &mut Numbers, bias: &[f32]) -> Result<()> {
        let mut own = self.room_for(Purpose::Rows, bias.len())?;
        self.put(bias, &mut own, 0)?;
        let parameters = [
            Parameter::Place(self.all(rows)),
            Parameter::Place(self.all(&own)),
            Parameter::Word(bias.len() as u32),
            Parameter::Long(rows.len() as u64),
        ];
        self.start(self.kernels.bias, blocks(rows.len()), &parameters)
    }

    /// Multiplies `up` with the gate's `SiLU`, in place of the gate.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn gate(&mut self, gate: &mut Numbers, up: &Numbers) -> Result<()> {
        assert_eq!(gate.len(), up.len(), "there is a gate for each");
        let parameters = [
            Parameter::Place(self.all(gate)),
            Parameter::Place(self.all(up)),
            Parameter::Long(gate.len() as u64),
        ];
        self.start(self.kernels.gate, blocks(gate.len()), &parameters)
    }

    /// Turns the heads of texts by their tokens' positions. `rotations` has cosine and sine of each pair of a head at each position.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn rotate(
        &mut self,
        x: &mut Numbers,
        (heads, width): (usize, usize),
        lens: &[usize],
        rotations: &Numbers,
    ) -> Result<()> {
        let mut first = 0;
        for len in lens.iter().map(|len| len * heads * width) {
            assert!(len / heads <= rotations.len(), "there is a rotation for each position");
            let parameters = [
                Parameter::Place(self.some(x, first, len)),
                Parameter::Place(self.all(rotations)),
                Parameter::Word(heads as u32),
                Parameter::Word(width as u32 / 2),
                Parameter::Long(len as u64 / 2),
            ];
            self.start(self.kernels.rotate, blocks(len / 2), &parameters)?;
            first += len;
        }
        Ok(())
    }

    /// The numbers that the scores of attention within texts of at most so many tokens take.
    pub fn scores(sizes: &HeadSizes, longest: usize) -> usize {
        sizes.keys * sizes.shared_by * QUERIES.min(longest) * longest
    }

    /// What queries `first..end` of a text find in its keys and values by causal attention: the text has the tokens from `start` on.
    ///
    /// # Errors
    /// As [`Algebra::free_bytes`].
    pub fn attend(
        &mut self,
        [q, k, v]: [&Numbers; 3],
        scores: &mut Numbers,
        found: &mut Numbers,
        sizes: &HeadSizes,
        (start, first, end): (usize, usize, usize),
    ) -> Result<()> {
        self.context.bind()?;
        let HeadSizes { keys, shared_by, width, window } = *sizes;
        let (heads, key_columns) = (keys * shared_by, keys * width);
        let columns = heads * width;
        let from = (first + 1).saturating_sub(window);
        let (tokens, seen) = (end - first, end - from);
        let of = |numbers| Matrices::of(numbers, Element::F32, tokens, width);
        // Heads that share keys and values lie side by side: the first ones of all are a batch, then the second ones.
        let of_queries = |member: usize| (start + first) * columns + member * width;
        let of_scores = |member: usize, scores| Matrices {
            first: member * tokens * seen,
            columns: seen,
            row: seen,
            apart: shared_by * tokens * seen,
            ..of(scores)
        };
        let of_keys = |numbers| Matrices {
            first: (start + from) * key_columns,
            rows: seen,
            row: key_columns,
            apart: width,
            ..of(numbers)
        };
        let scale = 1.0 / (width as f32).sqrt();
        for member in 0..shared_by {
            let q = Matrices {
                first: of_queries(member),
                row: columns,
                apart: shared_by * width,
                ..of(self.all(q))
            };
            let keys_of = (of_keys(self.all(k)), Right::Transposed);
            // SAFETY: no memory of the device is given back to it before the stream has come to its end.
            unsafe {
                self.blas.multiply(scale, q, keys_of, false, of_scores(member, self.all(scores)), keys)?;
            }
        }
        let count = heads * tokens;
        let parameters = [
            Parameter::Place(self.some(scores, 0, count * seen)),
            Parameter::Word(tokens as u32),
            Parameter::Word(seen as u32),
            Parameter::Word((first - from) as u32),
            Parameter::Word(u32::try_from(window).unwrap_or(u32::MAX)),
        ];
        self.start(self.kernels.soften, u32::try_from(count).expect("scores are far fewer"), &parameters)?;
        for member in 0..shared_by {
            let found = Matrices {
                first: of_queries(member),
                row: columns,
                apart: shared_by * width,
                ..of(self.all(found))
            };
            let values = (of_keys(self.all(v)), Right::AsItIs);
            // SAFETY: as above.
            unsafe {
                self.blas.multiply(1.0, of_scores(member, self.all(scores)), values, false, found, keys)?;
            }
        }
        Ok(())
    }

    /// Starts an entry of `decoder.cu` on numbers that were looked at to be there.
    fn start(&self, kernel: Function, blocks: u32, parameters: &[Parameter<'_>]) -> Result<()> {
        if blocks == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: callers give each entry its own parameters, with regions as large as the entry touches; no memory of the device
        // is given back to it before the stream has come to its end, and the module lives as long as this.
        unsafe { self.stream.start(&kernel, blocks, THREADS, parameters) }
    }
}

impl Drop for Algebra {
    fn drop(&mut self) {
        // What the device still does uses memory that is given back next. Nobody is left to hear of an error.
        let _ = self.finish();
    }
}

/// Numbers as sums of terms in bfloat16.
#[derive(Debug)]
pub struct Terms {
    numbers: Numbers,
    len: usize,
    count: usize,
}

impl Terms {
    /// One term of all numbers, in rows of so many columns.
    fn matrix(&self, term: usize, columns: usize) -> Matrices<'_> {
        let all =
            Matrices::of(self.numbers.some(0, self.numbers.len), Element::BF16, self.len / columns, columns);
        Matrices { first: term * self.len, ..all }
    }
}

impl Kernels {
    fn new() -> Result<Self> {
        const PTX: &str = include_str!("../../../kernels/ptx/decoder.ptx");
        let module = Module::new("decoder", PTX)?;
        let kernel = |name: &str| module.kernel(&format!("decoder_{name}"));
        Ok(Self {
            split: kernel("split")?,
            norm: kernel("norm")?,
            rotate: kernel("rotate")?,
            soften: kernel("soften")?,
            gate: kernel("gate")?,
            bias: kernel("bias")?,
            _module: module,
        })
    }
}
