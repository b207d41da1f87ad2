//! A heat map: a number for each row and column as a shade, with a legend, and the number itself where the pointer rests.
//!
//! A shade is the scale's colour over the paper, so that nothing is dark in a dark page and light in a light one: what is small
//! looks like the paper. Where numbers have two signs, each sign has a colour.

use std::fmt::Write as _;

use super::{COLOURS, DIM, GRID, INK, LETTER, PAPER, WIDTH, digits, escaped};

/// How numbers become shades.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// From the first number, which is paper, to the second.
    From(f64, f64),
    /// From 0, which is paper, to this number in one colour and to its opposite in another.
    Signed(f64),
}

/// A point drawn over a heat map.
#[derive(Debug, Clone)]
pub struct Mark {
    /// Where, in columns: 0 is the middle of the first one.
    pub column: f64,
    /// Where, in rows.
    pub row: f64,
    /// What is said where the pointer rests.
    pub title: String,
    /// Whether it is the one that matters most.
    pub filled: bool,
}

/// What a heat map shows.
#[derive(Debug)]
pub struct HeatMap<'a> {
    /// What the numbers are, with their unit.
    pub what: &'a str,
    /// The names of the rows, from the top.
    pub rows: &'a [String],
    /// The names of the columns.
    pub columns: &'a [String],
    /// What the columns are.
    pub columns_are: &'a str,
    /// The numbers, row by row; nothing where there is none.
    pub values: &'a [Option<f64>],
    /// How they become shades.
    pub scale: Scale,
    /// Points over it.
    pub marks: &'a [Mark],
}

/// The heights of a row, of what stands above the first and of what stands below the last.
const ROW: f64 = 22.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 44.0;

/// From this width on a cell has its number in it.
const WRITTEN: f64 = 40.0;

/// The widths of a column at the most, and of all names at the most.
const COLUMN_MAX: f64 = 72.0;
const NAMES_MAX: f64 = 260.0;

/// The shade of a number: which colour, and how much of it.
fn shade(scale: Scale, value: f64) -> (String, f64) {
    let share = |of: f64, all: f64| if all > 0.0 { (of / all).clamp(0.0, 1.0) } else { 0.0 };
    match scale {
        Scale::From(low, high) => (COLOURS[0].css(), share(value - low, high - low)),
        Scale::Signed(most) if value < 0.0 => (COLOURS[1].css(), share(-value, most)),
        Scale::Signed(most) => (COLOURS[0].css(), share(value, most)),
    }
}

/// The drawing.
pub fn heat_map(map: &HeatMap) -> String {
    let (rows, columns) = (map.rows.len(), map.columns.len());
    assert_eq!(map.values.len(), rows * columns, "there is a number for each row and column");
    let longest = map.rows.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER + 12.0).min(NAMES_MAX);
    let width = ((f64::from(WIDTH) - left - 10.0) / columns.max(1) as f64).min(COLUMN_MAX);
    let height = ABOVE + ROW * rows as f64 + BELOW;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\" font-size=\"12\">\n",
        escaped(map.what)
    );
    legend(&mut svg, map);
    for (row, name) in map.rows.iter().enumerate() {
        let y = ABOVE + ROW * row as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 0.5 * ROW + 4.0,
            escaped(&crate::text::cut_to(name, (NAMES_MAX / LETTER) as usize - 2))
        );
        for (column, of) in map.columns.iter().enumerate() {
            let Some(value) = map.values[row * columns + column] else { continue };
            let (colour, share) = shade(map.scale, value);
            let _ = writeln!(
                svg,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\" fill-opacity=\"{share:.3}\" \
                 stroke=\"{}\" stroke-width=\"0.5\"><title>{}</title></rect>",
                left + width * column as f64,
                width - 1.0,
                ROW - 1.0,
                GRID.css(),
                escaped(&format!("{name}, {} {of}: {}", map.columns_are, digits(value)))
            );
            if width >= WRITTEN {
                // On the middle shades ink is read better in a light page and in a dark one.
                let ink = if share > 0.8 { PAPER } else { INK };
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\" pointer-events=\"none\" \
                     style=\"fill:{}\">{}</text>",
                    left + width * (column as f64 + 0.5) - 0.5,
                    y + 0.5 * ROW + 3.5,
                    ink.css(),
                    digits(value)
                );
            }
        }
    }
    // As many names as have room.
    let widest = map.columns.iter().map(|name| name.chars().count()).max().unwrap_or(1);
    let every = ((widest as f64 * LETTER + 6.0) / width).ceil().max(1.0) as usize;
    let below = ABOVE + ROW * rows as f64 + 15.0;
    for (column, name) in map.columns.iter().enumerate().step_by(every) {
        let x = left + width * (column as f64 + 0.5);
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>",
            escaped(name)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        left + 0.5 * width * columns as f64,
        below + 18.0,
        escaped(map.columns_are)
    );
    for Mark { column, row, title, filled } in map.marks {
        let _ = writeln!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\" fill=\"{}\" stroke=\"{}\" stroke-width=\"2\"><title>{}</title></circle>",
            left + width * (column + 0.5),
            ABOVE + ROW * (row + 0.5),
            if *filled { INK.css() } else { PAPER.css() },
            INK.css(),
            escaped(title)
        );
    }
    svg + "</svg>\n"
}

/// The shades with their numbers, above the map.
fn legend(svg: &mut String, map: &HeatMap) {
    const PARTS: usize = 11;
    const PART: f64 = 14.0;
    let (low, high) = match map.scale {
        Scale::From(low, high) => (low, high),
        Scale::Signed(most) => (-most, most),
    };
    let is_beyond =
        |is: fn(f64, f64) -> bool, end: f64| map.values.iter().flatten().any(|value| is(*value, end));
    let more = |is_beyond: bool, words: &'static str| if is_beyond { words } else { "" };
    let less = more(is_beyond(|value, low| value < low, low), " or less");
    let more = more(is_beyond(|value, high| value > high, high), " or more");
    let end = f64::from(WIDTH) - 70.0 - LETTER * more.len() as f64;
    let start = end - PART * PARTS as f64;
    let _ = writeln!(svg, "<text x=\"0\" y=\"16\" font-size=\"13\">{}</text>", escaped(map.what));
    for part in 0..PARTS {
        let value = low + (high - low) * part as f64 / (PARTS - 1) as f64;
        let (colour, share) = shade(map.scale, value);
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"5\" width=\"{PART}\" height=\"14\" fill=\"{colour}\" fill-opacity=\"{share:.3}\"/>",
            start + PART * part as f64
        );
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{start:.1}\" y=\"5\" width=\"{:.1}\" height=\"14\" fill=\"none\" stroke=\"{}\" stroke-width=\"0.5\"/>",
        PART * PARTS as f64,
        DIM.css()
    );
    for (x, anchor, value, words) in [(start - 5.0, "end", low, less), (end + 5.0, "start", high, more)] {
        let _ = writeln!(
            svg,
            "<text x=\"{x:.1}\" y=\"16\" text-anchor=\"{anchor}\">{}{words}</text>",
            digits(value)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(values: &[Option<f64>], scale: Scale) -> String {
        let names = |names: [&str; 2]| names.map(str::to_string);
        let mark = Mark { column: 0.5, row: 1.0, title: "a & b".into(), filled: true };
        heat_map(&HeatMap {
            what: "norm",
            rows: &names(["q<", "k"]),
            columns: &names(["0", "1"]),
            columns_are: "layer",
            values,
            scale,
            marks: &[mark],
        })
    }

    #[test]
    fn shades_follow_the_numbers() {
        let svg = map(&[Some(0.0), Some(1.0), None, Some(4.0)], Scale::From(0.0, 4.0));
        for (title, share) in
            [("q&lt;, layer 0: 0", "0.000"), ("q&lt;, layer 1: 1.00", "0.250"), ("k, layer 1: 4.00", "1.000")]
        {
            let cell = svg.lines().find(|line| line.contains(title)).unwrap();
            assert!(cell.contains(&format!("fill-opacity=\"{share}\"")), "{cell}");
        }
        assert!(!svg.contains("k, layer 0"), "no number, no cell");
        assert!(svg.contains("<title>a &amp; b</title>"));
    }

    #[test]
    fn signs_have_colours_of_their_own_and_zero_is_paper() {
        let svg = map(&[Some(-0.5), Some(0.5), Some(0.0), Some(-2.0)], Scale::Signed(1.0));
        let cell = |title: &str| svg.lines().find(|line| line.contains(title)).unwrap().to_string();
        assert!(cell("q&lt;, layer 0").contains("var(--vermilion)\" fill-opacity=\"0.500\""));
        assert!(cell("q&lt;, layer 1").contains("var(--blue)\" fill-opacity=\"0.500\""));
        assert!(cell("k, layer 0").contains("fill-opacity=\"0.000\""));
        assert!(cell("k, layer 1").contains("var(--vermilion)\" fill-opacity=\"1.000\""));
        // One is beyond the scale's one end, none beyond the other.
        assert!(
            svg.contains(">-1.00 or less<") && svg.contains(">1.00<") && !svg.contains("or more"),
            "{svg}"
        );
        assert!(map(&[Some(3.0); 4], Scale::From(0.0, 2.0)).contains(">2.00 or more<"));
    }

    #[test]
    fn a_scale_of_no_width_is_drawn() {
        assert!(!map(&[Some(3.0); 4], Scale::From(3.0, 3.0)).contains("NaN"));
    }
}
