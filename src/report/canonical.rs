//! JSON in one form, that of RFC 8785: keys sorted, no space between anything, numbers as JavaScript writes them. The same values are
//! the same bytes, so a signature of them holds whoever wrote them down.
//!
//! One thing differs: integers are written with all of their digits, also beyond 2⁵³, where JavaScript would round them.

use serde_json::{Number, Value};

/// Writes the canonical form of a value.
pub fn write(value: &Value, into: &mut String) {
    match value {
        Value::Null => into.push_str("null"),
        Value::Bool(value) => into.push_str(if *value { "true" } else { "false" }),
        Value::Number(value) => into.push_str(&number(value)),
        Value::String(text) => write_text(text, into),
        Value::Array(values) => {
            into.push('[');
            for (place, value) in values.iter().enumerate() {
                if place > 0 {
                    into.push(',');
                }
                write(value, into);
            }
            into.push(']');
        }
        Value::Object(object) => {
            write_object(object.iter().map(|(key, value)| (key.as_str(), value)), write, into);
        }
    }
}

/// Writes an object, of whose values each is written by `write_value`.
pub fn write_object<'k, V>(
    entries: impl Iterator<Item = (&'k str, V)>,
    mut write_value: impl FnMut(V, &mut String),
    into: &mut String,
) {
    let mut entries: Vec<(&str, V)> = entries.collect();
    // By 16-bit units, which differs from the order of characters beyond the first 65,536.
    entries.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
    into.push('{');
    for (place, (key, value)) in entries.into_iter().enumerate() {
        if place > 0 {
            into.push(',');
        }
        write_text(key, into);
        into.push(':');
        write_value(value, into);
    }
    into.push('}');
}

fn write_text(text: &str, into: &mut String) {
    into.push_str(&serde_json::to_string(text).expect("text is JSON"));
}

fn number(number: &Number) -> String {
    match number.as_f64() {
        Some(value) if number.is_f64() => float(value),
        _ => number.to_string(),
    }
}

/// A finite number as ECMAScript's `Number::toString` writes it: the fewest digits that read back as it, and of these the nearest.
fn float(value: f64) -> String {
    // The digits are serde_json's, which takes the even one of two that are as near; the standard library does not.
    let written = serde_json::to_string(&value.abs()).expect("a float is JSON");
    let (mantissa, exponent) = written.split_once('e').unwrap_or((&written, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_start_matches('0');
    let zeros_before = (all.len() - digits.len()) as i32;
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        // There is one zero.
        return "0".into();
    }
    // The point stands behind so many digits.
    let point = whole.len() as i32 - zeros_before + exponent.parse::<i32>().expect("it is a number");
    let count = digits.len() as i32;
    let zeros = |count: i32| "0".repeat(count as usize);
    let magnitude = match point {
        _ if point >= count && point <= 21 => digits.to_owned() + &zeros(point - count),
        1..=21 => format!("{}.{}", &digits[..point as usize], &digits[point as usize..]),
        -5..=0 => format!("0.{}{digits}", zeros(-point)),
        _ => {
            let sign = if point > 0 { '+' } else { '-' };
            let dot = if count > 1 { "." } else { "" };
            format!("{}{dot}{}e{sign}{}", &digits[..1], &digits[1..], (point - 1).abs())
        }
    };
    if value < 0.0 { format!("-{magnitude}") } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn canonical(value: &Value) -> String {
        let mut text = String::new();
        write(value, &mut text);
        text
    }

    /// The examples of the RFC, its sections 3.2.2, 3.2.3 and appendix B.
    #[test]
    fn values_are_written_as_the_rfc_writes_them() {
        let text = r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#;
        let expected = r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#;
        assert_eq!(canonical(&serde_json::from_str(text).unwrap()), expected);
        let keys = json!({ "€": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "😀": 5, "\u{80}": 6, "ö": 7 });
        assert_eq!(
            canonical(&keys),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
        for (bits, expected) in [
            (0x0000_0000_0000_0000, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            assert_eq!(float(f64::from_bits(bits)), expected);
        }
        assert_eq!(canonical(&json!([u64::MAX, 0, -1])), "[18446744073709551615,0,-1]");
    }
}
