//! One entry cut out of its kernel's PTX, so that the driver compiles nothing else.
//!
//! A file, as the compiler writes it, is a head (`.version`, `.target`, `.address_size`) and parts: functions, entries, and
//! whatever else begins with a directive at the beginning of a line. A part ends with a line `}`, or, as long as there was
//! no line `{`, with a line that ends with `;`. The text of an entry is the head and, in the order of the file:
//!
//! - the entry;
//! - the functions that a part of the text mentions;
//! - every part that is neither an entry nor a function.
//!
//! Comments between parts are left out: the driver knows by its text what it has compiled before. `tools/build_kernels.py` cuts by the same
//! rule, and assembles and times what comes of it.

/// A part of a file.
struct Part<'a> {
    text: &'a str,
    kind: Kind<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    /// With its name.
    Entry(&'a str),
    /// With its name.
    Function(&'a str),
    Other,
}

/// The text of an entry; `None` where the file has no such entry.
pub(super) fn cut(file: &str, entry: &str) -> Option<String> {
    let (head, parts) = read(file);
    parts.iter().find(|part| part.kind == Kind::Entry(entry))?;
    let mut wanted: Vec<bool> = parts
        .iter()
        .map(|part| matches!(part.kind, Kind::Other) || part.kind == Kind::Entry(entry))
        .collect();
    // Functions call functions, which may stand on either side of them.
    while let Some(more) = (0..parts.len()).find(|part| {
        let Kind::Function(name) = parts[*part].kind else { return false };
        let mut texts = parts.iter().zip(&wanted).filter(|(_, wanted)| **wanted);
        !wanted[*part] && texts.any(|(by, _)| mentions(by.text, name))
    }) {
        wanted[more] = true;
    }
    let parts = parts.iter().zip(wanted).filter(|(_, wanted)| *wanted);
    Some(parts.fold(head, |text, (part, _)| text + "\n" + part.text))
}

/// The lines of the head, and the parts.
fn read(file: &str) -> (String, Vec<Part<'_>>) {
    let mut head = String::new();
    let (mut parts, mut in_head) = (Vec::new(), true);
    // Where the part that is being read begins, and whether its braces are open.
    let mut part: Option<(usize, bool)> = None;
    let mut at = 0;
    for whole in file.split_inclusive('\n') {
        let line = whole.trim_end_matches('\n');
        let next = at + whole.len();
        if in_head {
            if line.starts_with('.') {
                head += whole;
            }
            in_head = !line.starts_with(".address_size");
        } else if part.is_some() || line.starts_with('.') {
            let (from, open) = part.unwrap_or((at, false));
            let open = open || line == "{";
            let ends = line == "}" || (!open && line.ends_with(';'));
            part = (!ends).then_some((from, open));
            if ends {
                let text = &file[from..next];
                parts.push(Part { text, kind: kind(text) });
            }
        }
        at = next;
    }
    (head, parts)
}

/// What a part is, by its first line: there the name of an entry or a function stands before the last parenthesis that opens.
fn kind(part: &str) -> Kind<'_> {
    let line = part.lines().next().unwrap_or("");
    let words = line.rsplit_once('(').map_or(line, |(before, _)| before);
    let name = words.rsplit(|c: char| !is_of_name(c)).next().unwrap_or("");
    let directive = |directive: &str| line.split_whitespace().any(|word| word == directive);
    if directive(".entry") {
        Kind::Entry(name)
    } else if directive(".func") {
        Kind::Function(name)
    } else {
        Kind::Other
    }
}

/// Whether a name stands in a text, and not as a part of another one.
fn mentions(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !before.ends_with(is_of_name) && !after.starts_with(is_of_name)
    })
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$'
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
// mergeforge kernel planted
.version 7.0
.target sm_75
.address_size 64

// x has been demoted
.global .align 4 .b8 table[8] = {1, 2};
.func  (.param .b32 func_retval0) late(
\t.param .b32 late_param_0
)
;
.func early(
)
{
\tcall.uni (r), late, (p);
\tret;

}
.func unused(
)
{
\t// early_or_late
\tret;

}
\t// .globl\tfirst
.visible .entry first(
\t.param .u64 first_param_0
)
.maxntid 128, 1, 1
{
\t{ // callseq 0, 0
\tcall.uni early, (p);
\t} // callseq 0
\tret;

}
.visible .entry first_of_two(
)
{
\tld.u32 %r1, [earlier];
\tret;

}
.func  (.param .b32 func_retval0) late(
\t.param .b32 late_param_0
)
{
\tret;

}
";

    #[test]
    fn an_entry_brings_what_it_calls_and_nothing_else() {
        let first = cut(FILE, "first").unwrap();
        let expected = "\
.version 7.0
.target sm_75
.address_size 64

.global .align 4 .b8 table[8] = {1, 2};

.func  (.param .b32 func_retval0) late(
\t.param .b32 late_param_0
)
;

.func early(
)
{
\tcall.uni (r), late, (p);
\tret;

}

.visible .entry first(
\t.param .u64 first_param_0
)
.maxntid 128, 1, 1
{
\t{ // callseq 0, 0
\tcall.uni early, (p);
\t} // callseq 0
\tret;

}

.func  (.param .b32 func_retval0) late(
\t.param .b32 late_param_0
)
{
\tret;

}
";
        assert_eq!(first, expected);
        let other = cut(FILE, "first_of_two").unwrap();
        assert!(!other.contains(".func") && other.contains(".global"), "{other}");
        // A function is no entry, and neither is a part of a name.
        for none in ["early", "first_of", "two", ""] {
            assert_eq!(cut(FILE, none), None, "{none}");
        }
    }
}
