// Made from src/kernel/ by `cargo run --example params wgsl > shaders/params.wgsl`: not to be edited.

const TILE = 0x400u;
const THREADS = 0x80u;
const VOTERS_MAX = 0xcu;
const GROUP_MODELS = 0x4u;
const KEEP_TRIM = 0x0u;
const KEEP_DROP = 0x1u;
const TALLY_NAN = 0x0u;
const TALLY_INFINITE = 0x1u;
const TALLY_OVERFLOWED = 0x2u;
const TALLY_KEPT = 0x4u;
const FLOAT_F32 = 0x0u;
const FLOAT_F16 = 0x1u;
const FLOAT_BF16 = 0x2u;
const FLOAT_MIXED = 0x3u;
const FLOAT_BIT = 0x4u;
const INFINITY_BITS = 0x7f800000u;
const KEY_MAX = 0x7f800001u;
const F16_FINITE_MAX = 0x477fefffu;
const BF16_FINITE_MAX = 0x7f7f7fffu;
const PHILOX_MULTIPLIER_0 = 0xd2511f53u;
const PHILOX_MULTIPLIER_1 = 0xcd9e8d57u;
const PHILOX_WEYL_0 = 0x9e3779b9u;
const PHILOX_WEYL_1 = 0xbb67ae85u;
const BY_ROWS = 0x0u;
const BY_COLUMNS = 0x1u;
const LEVELS_MAX = 0x10u;
const LEVELS_WORDS = 0x20u;
const BINS = 0x800u;
const ABOVE = 0x800u;
const UNEVEN = 0x801u;
const MAGNITUDES_WORDS = 0x802u;
const RULE_SUM = 0x0u;
const RULE_SIGNS = 0x1u;
const RULE_KEPT = 0x2u;
const RULE_LARGEST = 0x3u;
const RULE_ELECTED = 0x4u;
const RULE_COMMON = 0x5u;
const OWN_MAGNITUDE = 0xffffffffu;
const CHOSEN_SUMS = 0x3u;
const HOLDERS_WORDS = 0x2u;
const TALLY_REDO = 0x3u;
const PLAIN_LEAST = 0x21800000u;
const PLAIN_GREATEST = 0x5d800000u;
const PRODUCT_LEAST = 0x26800000u;
const PRODUCT_GREATEST = 0x58800000u;

struct Header {
    blocks: u32,
    floats: u32,
    inputs: u32,
    output: u32,
}
const HEADER_WORDS = 4u;
fn load_Header(at: u32) -> Header {
    return Header(table[at], table[at + 1u], table[at + 2u], table[at + 3u]);
}

struct Block {
    span: u32,
    first: u32,
    tiles: u32,
    record: u32,
}
const BLOCK_WORDS = 4u;
fn load_Block(at: u32) -> Block {
    return Block(table[at], table[at + 1u], table[at + 2u], table[at + 3u]);
}

struct Span {
    job: u32,
    first_tile: u32,
    elements: u32,
    results: u32,
    tally: u32,
}
const SPAN_WORDS = 5u;
fn load_Span(at: u32) -> Span {
    return Span(table[at], table[at + 1u], table[at + 2u], table[at + 3u], table[at + 4u]);
}

struct Model {
    coefficient: f32,
    keep: u32,
    limit: u32,
    first: u32,
    second: u32,
}
const MODEL_WORDS = 5u;
fn load_Model(at: u32) -> Model {
    return Model(bitcast<f32>(table[at]), table[at + 1u], table[at + 2u], table[at + 3u], table[at + 4u]);
}

struct Bracket {
    lowest: u32,
    shift: u32,
}
const BRACKET_WORDS = 2u;
fn load_Bracket(at: u32) -> Bracket {
    return Bracket(table[at], table[at + 1u]);
}

struct Election {
    rule: u32,
    selectors: u32,
    scale: f32,
    least: u32,
}
const ELECTION_WORDS = 4u;
fn load_Election(at: u32) -> Election {
    return Election(table[at], table[at + 1u], bitcast<f32>(table[at + 2u]), table[at + 3u]);
}

struct Part {
    coefficient: f32,
    share: f32,
    tolerance: f32,
}
const PART_WORDS = 3u;
fn load_Part(at: u32) -> Part {
    return Part(bitcast<f32>(table[at]), bitcast<f32>(table[at + 1u]), bitcast<f32>(table[at + 2u]));
}

struct Choice {
    selector: u32,
    kept: u32,
    kept_tile: u32,
    kept_lane: u32,
    dropped: u32,
    dropped_tile: u32,
    dropped_lane: u32,
}
const CHOICE_WORDS = 7u;
fn load_Choice(at: u32) -> Choice {
    return Choice(table[at], table[at + 1u], table[at + 2u], table[at + 3u], table[at + 4u], table[at + 5u], table[at + 6u]);
}

struct Nearness {
    t: f32,
    near: f32,
    factor: f32,
}
const NEARNESS_WORDS = 3u;
fn load_Nearness(at: u32) -> Nearness {
    return Nearness(bitcast<f32>(table[at]), bitcast<f32>(table[at + 1u]), bitcast<f32>(table[at + 2u]));
}
