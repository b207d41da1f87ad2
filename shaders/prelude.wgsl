// What all shaders share: the walk over tiles, element types at the door, keys, random masks, the order of sums.
//
// The same kernels as in kernels/*.cu, with the same variables in the same order. A workgroup of THREADS invocations works
// on one tile of TILE elements at a time; invocation t has the elements 8t … 8t+7, which are one group of the sums' order
// and one call of the random generator. Inputs start at multiples of 16 bytes and are padded to whole tiles, so every load
// is a whole vector; what lies past the end is read and becomes 0.
//
// Bits are what counts here, and WGSL lets a compiler fuse, reorder and flush. So every float operation goes through
// `pin`, behind which nothing is known of a value, and numbers that WebGPU makes no promises about (NaN, infinities, those
// near the ends of f32's range) are not worked on: a span with any of them says so in its tally, and the CPU does it.
//
// Before this stand params.wgsl, and one of subgroups.wgsl and no_subgroups.wgsl; behind it stands a kernel.

// The launch: a Header, then blocks, spans and jobs; places in words.
@group(0) @binding(0) var<storage, read> table: array<u32>;
// What inputs lie in.
@group(0) @binding(1) var<storage, read> memory: array<vec4<u32>>;
// What is counted beside results, span after span.
@group(0) @binding(2) var<storage, read_write> tally: array<atomic<u32>>;
// Zeros, which no compiler knows to be zeros.
@group(0) @binding(3) var<uniform> zero: vec4<u32>;
// What the launch leaves behind; each kernel uses one of these.
@group(0) @binding(4) var<storage, read_write> values: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;
@group(0) @binding(4) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> words: array<u32>;

// The element type of all inputs, or FLOAT_MIXED.
override FLOAT: u32 = FLOAT_MIXED;
// Models that a kernel is made for: 0 where it takes any number.
override MODELS: u32 = 0;

// What a workgroup works on: some tiles of one span. Places are in words, but for `out`, in vectors of 16 bytes.
struct Work {
    inputs: u32,
    output: u32,
    floats: u32,
    places: u32,
    job: u32,
    first_tile: u32,
    elements: u32,
    out: u32,
    tally: u32,
    first: u32,
    end: u32,
    record: u32,
}

fn work_of(group: u32) -> Work {
    let header = load_Header(0u);
    let block = load_Block(header.blocks + group * BLOCK_WORDS);
    let span = load_Span(block.span);
    return Work(header.inputs, header.output, header.floats, block.span + SPAN_WORDS, span.job, span.first_tile,
                span.elements, span.results, span.tally, block.first, block.first + block.tiles, block.record);
}

// ---- This invocation's eight elements of a tile

struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

struct EightBits {
    low: vec4<u32>,
    high: vec4<u32>,
}

struct EightChoices {
    low: vec4<bool>,
    high: vec4<bool>,
}

const LOW_LANES = vec4<u32>(0u, 1u, 2u, 3u);
const HIGH_LANES = vec4<u32>(4u, 5u, 6u, 7u);

fn pin(x: vec4<f32>) -> vec4<f32> { return bitcast<vec4<f32>>(bitcast<vec4<u32>>(x) ^ zero); }
fn pin_one(x: f32) -> f32 { return bitcast<f32>(bitcast<u32>(x) ^ zero.x); }

fn zeros() -> Eight { return Eight(vec4<f32>(0.0), vec4<f32>(0.0)); }
fn add(a: Eight, b: Eight) -> Eight { return Eight(pin(a.low + b.low), pin(a.high + b.high)); }
fn sub(a: Eight, b: Eight) -> Eight { return Eight(pin(a.low - b.low), pin(a.high - b.high)); }
fn mul(a: Eight, b: Eight) -> Eight { return Eight(pin(a.low * b.low), pin(a.high * b.high)); }
fn scale(a: f32, b: Eight) -> Eight { return Eight(pin(a * b.low), pin(a * b.high)); }

fn bits_of(x: Eight) -> EightBits {
    return EightBits(bitcast<vec4<u32>>(x.low), bitcast<vec4<u32>>(x.high));
}
fn of_bits(bits: EightBits) -> Eight {
    return Eight(bitcast<vec4<f32>>(bits.low), bitcast<vec4<f32>>(bits.high));
}
fn magnitudes_of(x: Eight) -> EightBits {
    let bits = bits_of(x);
    return EightBits(bits.low & vec4<u32>(0x7fffffffu), bits.high & vec4<u32>(0x7fffffffu));
}
fn absolute(x: Eight) -> Eight { return of_bits(magnitudes_of(x)); }

// How many of this invocation's elements of the span's tile exist.
fn lanes_of(work: Work, tile: u32, thread: u32) -> u32 {
    let before = tile * TILE + thread * 8u;
    return min(work.elements - min(before, work.elements), 8u);
}

// Which of eight places come before `end`.
fn before(end: u32) -> EightChoices {
    return EightChoices(LOW_LANES < vec4<u32>(end), HIGH_LANES < vec4<u32>(end));
}

fn both(a: EightChoices, b: EightChoices) -> EightChoices { return EightChoices(a.low & b.low, a.high & b.high); }

fn number_of(chosen: EightChoices) -> u32 {
    let ones = select(vec4<u32>(0u), vec4<u32>(1u), chosen.low) + select(vec4<u32>(0u), vec4<u32>(1u), chosen.high);
    return ones.x + ones.y + ones.z + ones.w;
}

fn chosen_or_zero(chosen: EightChoices, x: Eight) -> Eight {
    return Eight(select(vec4<f32>(0.0), x.low, chosen.low), select(vec4<f32>(0.0), x.high, chosen.high));
}

// The first where it is chosen, else the second.
fn either(chosen: EightChoices, x: Eight, y: Eight) -> Eight {
    return Eight(select(y.low, x.low, chosen.low), select(y.high, x.high, chosen.high));
}

// ---- Odd values

// Whether this invocation met a number that it must leave to the CPU.
var<private> odd: bool = false;

// Whether a magnitude is neither 0 nor in a range of bits.
fn beyond(magnitudes: vec4<u32>, least: u32, greatest: u32) -> bool {
    return any((magnitudes - vec4<u32>(least) > vec4<u32>(greatest - least)) & (magnitudes != vec4<u32>(0u)));
}

fn look_at(magnitudes: EightBits, least: u32, greatest: u32) {
    odd = odd || beyond(magnitudes.low, least, greatest) || beyond(magnitudes.high, least, greatest);
}

// Every kernel ends with this.
fn report_odd(work: Work) {
    if (odd) {
        atomicStore(&tally[work.tally + TALLY_REDO], 1u);
    }
}

// ---- Element types at the door

fn float_of(work: Work, input: u32) -> u32 {
    if (FLOAT != FLOAT_MIXED) {
        return FLOAT;
    }
    return table[work.floats + input];
}

// Eight elements as stored; `high` is used by float32 alone.
fn load(work: Work, input: u32, tile: u32, thread: u32) -> EightBits {
    let at = table[work.places + input];
    if (float_of(work, input) == FLOAT_F32) {
        let place = at + tile * (TILE / 4u) + thread * 2u;
        return EightBits(memory[place], memory[place + 1u]);
    }
    if (float_of(work, input) == FLOAT_BIT) {
        // A byte of each invocation.
        let vector = memory[at + tile * (TILE / 128u) + thread / 16u];
        let byte = vec4<u32>(vector[thread / 4u & 3u] >> ((thread & 3u) * 8u));
        return EightBits(byte, byte);
    }
    let low = memory[at + tile * (TILE / 8u) + thread];
    return EightBits(low, low);
}

// Two 16-bit numbers of each word, in the order of their places.
fn halves(raw: vec4<u32>) -> EightBits {
    let low = raw & vec4<u32>(0xffffu);
    let high = raw >> vec4<u32>(16u);
    return EightBits(vec4<u32>(low.x, high.x, low.y, high.y), vec4<u32>(low.z, high.z, low.w, high.w));
}

// Subnormals are whole multiples of 2^-24, converted as integers.
fn f32_of_f16(half: vec4<u32>) -> vec4<u32> {
    let sign = (half & vec4<u32>(0x8000u)) << vec4<u32>(16u);
    let magnitude = half & vec4<u32>(0x7fffu);
    let subnormal = bitcast<vec4<u32>>(pin(vec4<f32>(magnitude) * 5.9604644775390625e-8));
    let normal = (magnitude << vec4<u32>(13u)) + vec4<u32>(112u << 23u);
    let finite = select(normal, subnormal, magnitude < vec4<u32>(0x400u));
    let special = vec4<u32>(INFINITY_BITS) | ((magnitude & vec4<u32>(0x3ffu)) << vec4<u32>(13u));
    return sign | select(finite, special, magnitude >= vec4<u32>(0x7c00u));
}

fn decode(work: Work, input: u32, raw: EightBits) -> EightBits {
    let float = float_of(work, input);
    if (float == FLOAT_F32) {
        return raw;
    }
    if (float == FLOAT_BIT) {
        let one = vec4<u32>(0x3f800000u);
        let bit = vec4<u32>(1u);
        return EightBits(one * ((raw.low >> LOW_LANES) & bit), one * ((raw.high >> HIGH_LANES) & bit));
    }
    let stored = halves(raw.low);
    if (float == FLOAT_BF16) {
        return EightBits(stored.low << vec4<u32>(16u), stored.high << vec4<u32>(16u));
    }
    return EightBits(f32_of_f16(stored.low), f32_of_f16(stored.high));
}

// The elements of one input, 0 past the end; what is odd about them is noted.
fn input_of(work: Work, input: u32, tile: u32, thread: u32, exist: EightChoices) -> Eight {
    let bits = decode(work, input, load(work, input, tile, thread));
    let nothing = vec4<u32>(0u);
    let own = EightBits(select(nothing, bits.low, exist.low), select(nothing, bits.high, exist.high));
    let sign_less = vec4<u32>(0x7fffffffu);
    look_at(EightBits(own.low & sign_less, own.high & sign_less), PLAIN_LEAST, PLAIN_GREATEST);
    return of_bits(own);
}

// ---- Merged values

fn canonical(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    return select(bits, vec4<u32>(0u), (bits & vec4<u32>(0x7fffffffu)) == vec4<u32>(0u));
}

// Adding just under half an ulp, and one more when the kept part is odd, rounds to nearest even.
fn bf16_of(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let even = (bits >> vec4<u32>(16u)) & vec4<u32>(1u);
    let rounded = (bits + vec4<u32>(0x7fffu) + even) >> vec4<u32>(16u);
    return select(rounded, vec4<u32>(0u), (rounded & vec4<u32>(0x7fffu)) == vec4<u32>(0u));
}

// Normal results: the exponent re-biased by 112, rounded in the integer. Subnormal results have units of 2^-24: adding
// 0.5 makes the f32 adder round to them.
fn f16_of(x: vec4<f32>) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let even = (magnitude >> vec4<u32>(13u)) & vec4<u32>(1u);
    let normal = (magnitude - vec4<u32>(112u << 23u) + vec4<u32>(0xfffu) + even) >> vec4<u32>(13u);
    let subnormal = bitcast<vec4<u32>>(pin(bitcast<vec4<f32>>(magnitude) + 0.5)) - vec4<u32>(0x3f000000u);
    let rounded = select(normal, subnormal, magnitude < vec4<u32>(0x38800000u));
    let finite = select(rounded, vec4<u32>(0x7c00u), magnitude > vec4<u32>(F16_FINITE_MAX));
    return select(sign | finite, vec4<u32>(0u), finite == vec4<u32>(0u));
}

// Four words of eight 16-bit numbers.
fn packed(low: vec4<u32>, high: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(low.xz, high.xz) | (vec4<u32>(low.yw, high.yw) << vec4<u32>(16u));
}

// Stores a tile's results and counts those that become infinite.
fn finish(work: Work, tile: u32, thread: u32, exist: EightChoices, x: Eight) {
    var finite_max = INFINITY_BITS - 1u;
    if (work.output == FLOAT_F32) {
        let at = work.out + tile * (TILE / 4u) + thread * 2u;
        values[at] = canonical(x.low);
        values[at + 1u] = canonical(x.high);
    } else {
        let at = work.out + tile * (TILE / 8u) + thread;
        if (work.output == FLOAT_BF16) {
            finite_max = BF16_FINITE_MAX;
            values[at] = packed(bf16_of(x.low), bf16_of(x.high));
        } else {
            finite_max = F16_FINITE_MAX;
            values[at] = packed(f16_of(x.low), f16_of(x.high));
        }
    }
    let magnitudes = magnitudes_of(x);
    let most = vec4<u32>(finite_max);
    let overflowed = number_of(both(exist, EightChoices(magnitudes.low > most, magnitudes.high > most)));
    if (overflowed > 0u) {
        atomicAdd(&tally[work.tally + TALLY_OVERFLOWED], overflowed);
    }
}

// ---- Random masks: Philox4x32-10 (Salmon et al., SC 2011), counter (element / 8, call)

// The high and the low word of a product.
fn product(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let middle = a1 * b0 + (low >> 16u);
    let other = a0 * b1 + (middle & 0xffffu);
    return vec2<u32>(a1 * b1 + (middle >> 16u) + (other >> 16u), (other << 16u) | (low & 0xffffu));
}

fn philox(low: u32, high: u32, call: u32, key0: u32, key1: u32) -> vec4<u32> {
    var random = vec4<u32>(low, high, call, 0u);
    var keys = vec2<u32>(key0, key1);
    for (var round = 0u; round < 10u; round++) {
        let first = product(PHILOX_MULTIPLIER_0, random.x);
        let second = product(PHILOX_MULTIPLIER_1, random.z);
        random = vec4<u32>(second.x ^ random.y ^ keys.x, second.y, first.x ^ random.w ^ keys.y, first.y);
        keys += vec2<u32>(PHILOX_WEYL_0, PHILOX_WEYL_1);
    }
    return random;
}

// Which of this invocation's elements of a tile of the tensor are kept. A draw that equals the probability's upper half is
// settled by the lower half and a second call.
fn choose(tile: u32, thread: u32, model: Model) -> EightChoices {
    let low = tile * (TILE / 8u) + thread;
    let high = tile >> 25u;
    let upper = vec4<u32>(model.limit >> 16u);
    let lower = vec4<u32>(model.limit & 0xffffu);
    let draws = halves(philox(low, high, 0u, model.first, model.second));
    let undecided = EightChoices(draws.low == upper, draws.high == upper);
    var kept = EightChoices(draws.low < upper, draws.high < upper);
    if (any(undecided.low | undecided.high)) {
        let again = halves(philox(low, high, 1u, model.first, model.second));
        kept.low = kept.low | (undecided.low & (again.low < lower));
        kept.high = kept.high | (undecided.high & (again.high < lower));
    }
    return kept;
}

// ---- Task vectors

// v = (kept ? coefficient : 0) · (x − base), for a tile of the tensor, and, where magnitudes decide, how many elements are
// kept of those that exist.
struct Term {
    v: Eight,
    kept: u32,
}

fn weighted_delta(model: Model, tile: u32, thread: u32, exist: EightChoices, x: Eight, base: Eight) -> Term {
    let delta = sub(x, base);
    var keep: EightChoices;
    var kept = 0u;
    if (model.keep == KEEP_DROP) {
        keep = choose(tile, thread, model);
    } else {
        // Of the keys equal to the threshold, those before the cut are kept. Where all are, the threshold is −1.
        let cut = select(select(0u, model.second, tile == model.first), TILE, tile < model.first);
        let first = before(cut - min(cut, thread * 8u));
        let one = vec4<i32>(1);
        let none = vec4<i32>(0);
        let limit = vec4<i32>(bitcast<i32>(model.limit));
        let keys = magnitudes_of(delta);
        keep.low = bitcast<vec4<i32>>(keys.low) >= limit + select(one, none, first.low);
        keep.high = bitcast<vec4<i32>>(keys.high) >= limit + select(one, none, first.high);
        kept = number_of(both(keep, exist));
    }
    let c = vec4<f32>(model.coefficient);
    let factors = chosen_or_zero(keep, Eight(c, c));
    return Term(mul(factors, delta), kept);
}

// The keys of this invocation's elements of one model; −1 past the end, which is below every key.
struct EightKeys {
    low: vec4<i32>,
    high: vec4<i32>,
}

fn keys_of(exist: EightChoices, x: Eight, base: Eight) -> EightKeys {
    let keys = magnitudes_of(sub(x, base));
    let absent = vec4<i32>(-1);
    return EightKeys(select(absent, bitcast<vec4<i32>>(keys.low), exist.low),
                     select(absent, bitcast<vec4<i32>>(keys.high), exist.high));
}

// The smallest keys that a trim keeps of elements at these places of a tile of the tensor. Of the keys equal to the threshold,
// those before the cut are kept.
fn smallest_kept(threshold: u32, cut_tile: u32, cut_lane: u32, tile: u32, thread: u32) -> EightKeys {
    let cut = select(select(0u, cut_lane, tile == cut_tile), TILE, tile < cut_tile);
    let first = before(cut - min(cut, thread * 8u));
    let of_first = vec4<i32>(bitcast<i32>(threshold));
    let of_others = of_first + vec4<i32>(1);
    return EightKeys(select(of_others, of_first, first.low), select(of_others, of_first, first.high));
}

// Which elements of a tile a choice keeps of a model, by its differences or by the selector that decides: those stand behind
// the models among the inputs.
fn chosen(work: Work, choice: Choice, models: u32, tile: u32, thread: u32, exist: EightChoices, delta: Eight) -> EightChoices {
    var deciding = delta;
    if (choice.selector != OWN_MAGNITUDE) {
        deciding = input_of(work, 1u + models + choice.selector, tile, thread, exist);
    }
    let keys = magnitudes_of(deciding);
    let low = bitcast<vec4<i32>>(keys.low);
    let high = bitcast<vec4<i32>>(keys.high);
    let of_tensor = work.first_tile + tile;
    let kept = smallest_kept(choice.kept, choice.kept_tile, choice.kept_lane, of_tensor, thread);
    let dropped = smallest_kept(choice.dropped, choice.dropped_tile, choice.dropped_lane, of_tensor, thread);
    return EightChoices((low >= kept.low) & (low < dropped.low), (high >= kept.high) & (high < dropped.high));
}

// ---- Sums in the contract's order

// Sums that are folded together, at most; what they share is 128 group sums each.
const SUMS_MAX = 2u * VOTERS_MAX;

var<workgroup> groups: array<f32, SUMS_MAX * THREADS>;

// An invocation's group of eight.
fn group_sum(terms: Eight) -> f32 {
    let low = pin_one(pin_one(terms.low.x + terms.low.y) + pin_one(terms.low.z + terms.low.w));
    let high = pin_one(pin_one(terms.high.x + terms.high.y) + pin_one(terms.high.z + terms.high.w));
    return pin_one(low + high);
}

// Folds each tile sum's 128 group sums by halves and writes the results. Every invocation calls it.
fn fold(thread: u32, count: u32, at: u32) {
    workgroupBarrier();
    for (var step = 0u; step < 7u; step++) {
        let shift = 6u - step;
        let half = 1u << shift;
        for (var i = thread; i < (count << shift); i += THREADS) {
            let place = (i >> shift) * THREADS + (i & (half - 1u));
            groups[place] = pin_one(groups[place] + groups[place + half]);
        }
        workgroupBarrier();
    }
    if (thread < count) {
        sums[at + thread] = groups[thread * THREADS];
    }
    workgroupBarrier();
}
