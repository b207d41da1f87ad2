//! What a plain scalar is, by the rules of `PyYAML`, which mergekit reads its configs with: YAML 1.1, less some of it.
//!
//! ```text
//! 010, 0x1F, 0b11, 1_000, 1:30, 5., .5, 1.5e+5, +.inf      numbers
//! 0o10, 0X1F, 0B11, 08, 1e5, 1.5e5, -.5, _1, 1:60, -.nan   text
//! ```
//!
//! Text that spells a number still counts as one where a number is needed: [`super::Scalar::as_number`].

/// What a plain scalar is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Plain {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// A number.
    Number(f64),
    /// Anything else.
    Text,
}

const NULLS: &[&str] = &["", "~", "null", "Null", "NULL"];
const TRUE: &[&str] = &["yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"];
const FALSE: &[&str] = &["no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"];

/// What a plain scalar is that has no tag.
pub fn resolve(text: &str) -> Plain {
    match text {
        _ if NULLS.contains(&text) => Plain::Null,
        _ if TRUE.contains(&text) => Plain::Bool(true),
        _ if FALSE.contains(&text) => Plain::Bool(false),
        _ => number(text).map_or(Plain::Text, Plain::Number),
    }
}

fn number(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let signed = unsigned.len() < text.len();
    let value = match (unsigned, unsigned.split_once('.')) {
        (".inf" | ".Inf" | ".INF", _) => f64::INFINITY,
        (".nan" | ".NaN" | ".NAN", _) if !signed => f64::NAN,
        // Of what begins with a point, only infinity takes a sign.
        (_, Some(("", _))) if signed => return None,
        (_, Some((whole, fraction))) => float(whole, fraction)?,
        (_, None) => integer(unsigned)?,
    };
    Some(if text.starts_with('-') { -value } else { value })
}

/// `0b11`, `0x1F`, `010` (eight), `1_000`, `1:30` (ninety).
fn integer(text: &str) -> Option<f64> {
    let based = [("0b", 2), ("0x", 16)];
    if let Some((digits, radix)) = based.iter().find_map(|(p, radix)| Some((text.strip_prefix(p)?, *radix))) {
        return in_base(digits, radix);
    }
    if text.len() > 1 && text.starts_with('0') { in_base(text, 8) } else { in_sixties(text) }
}

/// What stands before and behind the point of `5.`, `.5`, `1_0.5e+3`, `1:30.5` (ninety and a half).
fn float(whole: &str, fraction: &str) -> Option<f64> {
    if whole.contains(':') {
        let part: f64 = format!("0.{}", places(fraction)?).parse().ok()?;
        return Some(in_sixties(whole)? + part);
    }
    let (fraction, exponent) = fraction.split_once(['e', 'E']).unwrap_or((fraction, "+0"));
    let exponent_digits = exponent.strip_prefix(['+', '-'])?;
    let begins = if whole.is_empty() { fraction } else { whole };
    let is_number = begins.starts_with(|c: char| c.is_ascii_digit())
        && !exponent_digits.is_empty()
        && exponent_digits.bytes().all(|b| b.is_ascii_digit());
    let number = format!("{}.{}e{exponent}", places(whole)?, places(fraction)?);
    number.parse().ok().filter(|_| is_number)
}

/// Digits of a whole number, with underscores anywhere.
fn in_base(text: &str, radix: u32) -> Option<f64> {
    let digits: Vec<u32> =
        text.chars().filter(|c| *c != '_').map(|c| c.to_digit(radix)).collect::<Option<_>>()?;
    let number = digits.iter().fold(0.0, |number, digit| number * f64::from(radix) + f64::from(*digit));
    (!digits.is_empty()).then_some(number)
}

/// A decimal number, and perhaps sixtieths of it, each smaller than 60.
fn in_sixties(text: &str) -> Option<f64> {
    let mut parts = text.split(':');
    let first = parts.next().filter(|first| first.starts_with(|c: char| c.is_ascii_digit()))?;
    let first: f64 = places(first)?.parse().ok()?;
    parts.try_fold(first, |number, part| {
        let digits = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        let part: u8 = part.parse().ok().filter(|part| digits && *part < 60)?;
        Some(number * 60.0 + f64::from(part))
    })
}

/// Decimal digits, perhaps none, without the underscores between them.
fn places(text: &str) -> Option<String> {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'_').then(|| text.replace('_', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scalars as written that `PyYAML` 6.0 makes numbers of, and the numbers.
    const NUMBERS: &[(&str, f64)] = &[
        ("0", 0.0),
        ("+0", 0.0),
        ("00", 0.0),
        ("010", 8.0),
        ("-010", -8.0),
        ("+010", 8.0),
        ("0_7", 7.0),
        ("0_", 0.0),
        ("0b11", 3.0),
        ("-0b1", -1.0),
        ("0b1_0", 2.0),
        ("0x1F", 31.0),
        ("-0x1f", -31.0),
        ("+0x1F", 31.0),
        ("0x1_F", 31.0),
        ("1_000", 1000.0),
        ("1__0", 10.0),
        ("1_", 1.0),
        ("1:30", 90.0),
        ("-1:30", -90.0),
        ("1_0:30", 630.0),
        ("1:2:3:4:5:6", 804_182_706.0),
        ("12345678901234567890123", 12_345_678_901_234_567_890_123.0),
        ("5.", 5.0),
        ("-5.", -5.0),
        ("+5.", 5.0),
        (".5", 0.5),
        (".5_", 0.5),
        ("5._", 5.0),
        ("08.5", 8.5),
        ("1_0.5", 10.5),
        ("1.5_0", 1.5),
        ("1.e+5", 1e5),
        ("1.0e+5", 1e5),
        ("1.5E-5", 1.5e-5),
        (".5e+5", 5e4),
        ("1_2.3_4e+5", 1_234_000.0),
        ("1:30.5", 90.5),
        ("0:30.5", 30.5),
        ("-1:30.25", -90.25),
        ("190:20:30.15", 685_230.15),
        ("1:2:3.", 3723.0),
        ("1.0e+999", f64::INFINITY),
        (".inf", f64::INFINITY),
        (".Inf", f64::INFINITY),
        ("+.inf", f64::INFINITY),
        ("-.INF", f64::NEG_INFINITY),
    ];

    /// What it takes for text.
    const TEXTS: &[&str] = &[
        "0o10",
        "0O7",
        "-0o1",
        "0X10",
        "0B1",
        "0b",
        "0b2",
        "0x",
        "0x1G",
        "0b+1",
        "0_0x1",
        "0x1F.5",
        "08",
        "09",
        "019",
        "_1",
        "-_1",
        "++1",
        "--1",
        "+",
        ".",
        "..",
        "+.",
        "-.5",
        "+.5",
        "._5",
        ".e+5",
        "1e5",
        "1E5",
        "1e+5",
        "1e-5",
        "1.e5",
        "1.0e5",
        ".5e5",
        "1.5e5",
        "1_2e5",
        "1.0e+",
        "1.0e+1_0",
        "1.2.3",
        "1,000",
        "01:30",
        "0:30",
        "0:0",
        "1:60",
        "1:99",
        "1:3_0",
        "1:",
        ":1",
        "1::2",
        "1:030",
        "1.0:5",
        "1:30.5e+1",
        ".iNF",
        "-.nan",
        "+.nan",
        "inf",
        "nan",
        "Infinity",
        "2024-01-01",
        "٣",
        "٣.٥",
        "1٣",
        "1:٣",
        "y",
        "N",
        "tRUE",
        "oN",
        "nULL",
        // Here PyYAML fails.
        "0b_",
        "0x_",
    ];

    #[test]
    fn plain_scalars_are_what_pyyaml_makes_of_them() {
        for (text, value) in NUMBERS {
            assert_eq!(number(text), Some(*value), "{text}");
        }
        for text in [".nan", ".NaN", ".NAN"] {
            assert!(number(text).is_some_and(f64::is_nan), "{text}");
        }
        for text in TEXTS {
            assert_eq!(resolve(text), Plain::Text, "{text}");
        }
        for text in ["", "~", "null", "Null", "NULL"] {
            assert!(matches!(resolve(text), Plain::Null), "{text}");
        }
        for (text, value) in [("yes", true), ("Off", false), ("TRUE", true), ("no", false), ("On", true)] {
            assert!(matches!(resolve(text), Plain::Bool(found) if found == value), "{text}");
        }
    }
}
