// Made from src/kernel/ by `cargo run --example params > kernels/params.cuh`: not to be edited.
#pragma once

constexpr unsigned TILE = 0x400u;
constexpr unsigned THREADS = 0x80u;
constexpr unsigned VOTERS_MAX = 0xcu;
constexpr unsigned GROUP_MODELS = 0x4u;
constexpr unsigned KEEP_TRIM = 0x0u;
constexpr unsigned KEEP_DROP = 0x1u;
constexpr unsigned TALLY_NAN = 0x0u;
constexpr unsigned TALLY_INFINITE = 0x1u;
constexpr unsigned TALLY_OVERFLOWED = 0x2u;
constexpr unsigned TALLY_KEPT = 0x4u;
constexpr unsigned FLOAT_F32 = 0x0u;
constexpr unsigned FLOAT_F16 = 0x1u;
constexpr unsigned FLOAT_BF16 = 0x2u;
constexpr unsigned FLOAT_MIXED = 0x3u;
constexpr unsigned FLOAT_BIT = 0x4u;
constexpr unsigned INFINITY_BITS = 0x7f800000u;
constexpr unsigned KEY_MAX = 0x7f800001u;
constexpr unsigned F16_FINITE_MAX = 0x477fefffu;
constexpr unsigned BF16_FINITE_MAX = 0x7f7f7fffu;
constexpr unsigned PHILOX_MULTIPLIER_0 = 0xd2511f53u;
constexpr unsigned PHILOX_MULTIPLIER_1 = 0xcd9e8d57u;
constexpr unsigned PHILOX_WEYL_0 = 0x9e3779b9u;
constexpr unsigned PHILOX_WEYL_1 = 0xbb67ae85u;
constexpr unsigned BY_ROWS = 0x0u;
constexpr unsigned BY_COLUMNS = 0x1u;
constexpr unsigned LEVELS_MAX = 0x10u;
constexpr unsigned LEVELS_WORDS = 0x20u;
constexpr unsigned BINS = 0x800u;
constexpr unsigned ABOVE = 0x800u;
constexpr unsigned UNEVEN = 0x801u;
constexpr unsigned MAGNITUDES_WORDS = 0x802u;
constexpr unsigned RULE_SUM = 0x0u;
constexpr unsigned RULE_SIGNS = 0x1u;
constexpr unsigned RULE_KEPT = 0x2u;
constexpr unsigned RULE_LARGEST = 0x3u;
constexpr unsigned RULE_ELECTED = 0x4u;
constexpr unsigned RULE_COMMON = 0x5u;
constexpr unsigned OWN_MAGNITUDE = 0xffffffffu;
constexpr unsigned CHOSEN_SUMS = 0x3u;
constexpr unsigned HOLDERS_WORDS = 0x2u;

struct Header {
    unsigned blocks;
    unsigned floats;
    unsigned inputs;
    unsigned output;
};
static_assert(sizeof(Header) == 16, "words of 4 bytes");

struct Block {
    unsigned span;
    unsigned first;
    unsigned tiles;
    unsigned record;
};
static_assert(sizeof(Block) == 16, "words of 4 bytes");

struct Span {
    unsigned job;
    unsigned first_tile;
    unsigned elements;
    unsigned results;
    unsigned tally;
};
static_assert(sizeof(Span) == 20, "words of 4 bytes");

struct Model {
    float coefficient;
    unsigned keep;
    unsigned limit;
    unsigned first;
    unsigned second;
};
static_assert(sizeof(Model) == 20, "words of 4 bytes");

struct Bracket {
    unsigned lowest;
    unsigned shift;
};
static_assert(sizeof(Bracket) == 8, "words of 4 bytes");

struct Election {
    unsigned rule;
    unsigned selectors;
    float scale;
    unsigned least;
};
static_assert(sizeof(Election) == 16, "words of 4 bytes");

struct Part {
    float coefficient;
    float share;
    float tolerance;
};
static_assert(sizeof(Part) == 12, "words of 4 bytes");

struct Choice {
    unsigned selector;
    unsigned kept;
    unsigned kept_tile;
    unsigned kept_lane;
    unsigned dropped;
    unsigned dropped_tile;
    unsigned dropped_lane;
};
static_assert(sizeof(Choice) == 28, "words of 4 bytes");

struct Nearness {
    float t;
    float near;
    float factor;
};
static_assert(sizeof(Nearness) == 12, "words of 4 bytes");
