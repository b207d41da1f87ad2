//! Pages of HTML that need nothing beside them: the frame with its style, tables, and drawings as SVG.
//!
//! Colours are variables of the style, which has a light and a dark set: a page follows the reader's system. They are those of Okabe
//! and Ito, which colour-blind readers tell apart, brightened where the page is dark.
//!
//! ```text
//! page::document("title", &(page::table(…) + &page::heat_map(…) + &page::chart(…)))
//! ```

mod chart;
mod heat_map;

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::SystemTime;

pub use chart::{Axis, Chart, Series, chart};
pub use heat_map::{HeatMap, Mark, Scale, heat_map};

/// A drawing's width in its own units, and about that in pixels; it scales with the page.
pub const WIDTH: u32 = 960;

/// The width of a letter of a name, about.
const LETTER: f64 = 7.0;

/// A colour of pages: what it is called in the style, in the light set and in the dark one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    name: &'static str,
    light: [u8; 3],
    dark: [u8; 3],
}

const fn colour(name: &'static str, light: [u8; 3], dark: [u8; 3]) -> Colour {
    Colour { name, light, dark }
}

/// What is behind everything.
pub const PAPER: Colour = colour("paper", [255, 255, 255], [22, 24, 28]);
/// Text, and what matters most in a drawing.
pub const INK: Colour = colour("ink", [40, 40, 40], [230, 230, 230]);
/// What matters less.
pub const DIM: Colour = colour("dim", [105, 105, 105], [165, 165, 165]);
/// Lines behind what is drawn.
pub const GRID: Colour = colour("grid", [225, 225, 225], [58, 61, 66]);

/// The colours of things that are told apart, in the order in which they are taken.
pub const COLOURS: [Colour; 8] = [
    colour("blue", [0, 114, 178], [74, 163, 223]),
    colour("vermilion", [213, 94, 0], [240, 126, 46]),
    colour("green", [0, 158, 115], [38, 186, 142]),
    colour("purple", [204, 121, 167], [221, 148, 190]),
    colour("orange", [230, 159, 0], [240, 178, 41]),
    colour("sky", [86, 180, 233], [120, 200, 245]),
    colour("yellow", [240, 228, 66], [245, 235, 110]),
    colour("grey", [130, 130, 130], [150, 150, 150]),
];

impl Colour {
    /// The same in red, green and blue, of the light set: for drawings that know no variables, until [`themed`] puts them in.
    pub const fn rgb(self) -> [u8; 3] {
        self.light
    }

    /// The colour as a value of `fill`, `stroke` and properties of style.
    pub fn css(self) -> String {
        format!("var(--{})", self.name)
    }
}

const ALL: [Colour; 4] = [PAPER, INK, DIM, GRID];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:62rem;margin:2rem \
                     auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem}table{border-collapse:collapse;\
                     margin:.5rem 0 1rem}td{white-space:nowrap}th,td{padding:.2rem .9rem .2rem 0;text-align:right;\
                     border-bottom:1px solid var(--grid);vertical-align:top;font-variant-numeric:tabular-nums}th:first-child,\
                     td:first-child{text-align:left}svg{width:100%;height:auto;display:block}svg text{font-family:system-ui,\
                     sans-serif;fill:var(--ink)}.key span{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}\
                     p.note{color:var(--dim)}.wide{overflow-x:auto}details{margin:.5rem 0}summary{cursor:pointer;\
                     color:var(--dim)}pre{overflow-x:auto;padding:.7rem;border:1px solid var(--grid)}";

fn variables(shade: impl Fn(&Colour) -> [u8; 3]) -> String {
    ALL.iter().chain(&COLOURS).fold(String::new(), |mut css, colour| {
        let [red, green, blue] = shade(colour);
        let _ = write!(css, "--{}:#{red:02x}{green:02x}{blue:02x};", colour.name);
        css
    })
}

/// A whole page. `title` is text, `body` is HTML.
pub fn document(title: &str, body: &str) -> String {
    let title = escaped(title);
    let (light, dark) = (variables(|colour| colour.light), variables(|colour| colour.dark));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{title}</title>\n\
         <style>:root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{STYLE}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
    )
}

/// Text in which nothing is markup. What steers a terminal is of no use in a page either.
pub fn escaped(text: &str) -> String {
    let text = crate::text::escaped(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A paragraph of text.
pub fn paragraph(text: &str) -> String {
    format!("<p>{}</p>\n", escaped(text))
}

/// A paragraph that says how to read what stands above it.
pub fn note(text: &str) -> String {
    format!("<p class=\"note\">{}</p>\n", escaped(text))
}

/// A heading of a section.
pub fn heading(text: &str) -> String {
    format!("<h2>{}</h2>\n", escaped(text))
}

/// Something long, which a reader unfolds: `summary` is text, `body` is HTML.
pub fn folded(summary: &str, body: &str) -> String {
    format!("<details><summary>{}</summary>\n{body}</details>\n", escaped(summary))
}

/// A table of text: a head, and rows of as many cells.
pub fn table<H: AsRef<str>, R: AsRef<[String]>>(head: &[H], rows: impl IntoIterator<Item = R>) -> String {
    let mut html = "<div class=\"wide\"><table>\n".to_string();
    let mut row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        html += "<tr>";
        cells.for_each(|cell| html += &format!("<{tag}>{}</{tag}>", escaped(cell)));
        html += "</tr>\n";
    };
    row("th", &mut head.iter().map(AsRef::as_ref));
    rows.into_iter().for_each(|cells| row("td", &mut cells.as_ref().iter().map(String::as_str)));
    html + "</table></div>\n"
}

/// What the colours of a drawing mean.
pub fn key<'a>(what: &str, colours: impl IntoIterator<Item = (&'a str, Colour)>) -> String {
    let mut html = format!("<p class=\"key\">{}", escaped(what));
    for (name, colour) in colours {
        let _ = write!(html, "<span style=\"background:{}\"></span>{}", colour.css(), escaped(name));
    }
    html + "</p>\n"
}

/// A drawing made with colours of the light set, with the variables in their places.
pub fn themed(svg: &str) -> String {
    ALL.iter().chain(&COLOURS).fold(svg.to_owned(), |svg, colour| {
        let [red, green, blue] = colour.light;
        svg.replace(&format!("\"#{red:02X}{green:02X}{blue:02X}\""), &format!("\"{}\"", colour.css()))
    })
}

/// Today, as year, month and day.
pub fn today() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    date(since.map_or(0, |time| time.as_secs() / 86_400))
}

/// A day since 1970 as year, month and day (Hinnant's `civil_from_days`).
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{}-{month:02}-{day:02}", year + era * 400 + u64::from(month <= 2))
}

/// A number with three digits that count; in powers of ten where that would need many zeros.
pub fn digits(value: f64) -> Cow<'static, str> {
    if value == 0.0 {
        return "0".into();
    }
    if !value.is_finite() {
        return "–".into();
    }
    // A number like 9.996 has a digit more once it is rounded.
    let rounded: f64 = format!("{value:.2e}").parse().unwrap_or(value);
    let power = rounded.abs().log10().floor() as i32;
    if !(-5..9).contains(&power) {
        return format!("{value:.2e}").into();
    }
    let places = (2 - power).max(0) as usize;
    format!("{value:.places$}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        for (days, expected) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29"), (20_786, "2026-11-29")]
        {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn numbers_have_three_digits_that_count() {
        for (value, expected) in [
            (123.4, "123"),
            (1.234, "1.23"),
            (0.012_34, "0.0123"),
            (0.0, "0"),
            (-9.996, "-10.0"),
            (1.234e-7, "1.23e-7"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(digits(value), expected);
        }
    }

    #[test]
    fn nothing_in_a_page_is_markup_but_its_own() {
        let html = document("<t>", &(table(&["a<b"], [["\"x\" & y".into()]]) + &key("<k>", [("<n>", INK)])));
        assert!(html.contains("<th>a&lt;b</th>") && html.contains("&quot;x&quot; &amp; y"), "{html}");
        assert!(!html.contains("<t>") && !html.contains("<k>") && !html.contains("<n>"), "{html}");
        assert!(html.contains("<h1>&lt;t&gt;</h1>"), "{html}");
    }

    #[test]
    fn every_colour_that_is_used_is_in_both_sets() {
        let html = document("t", &themed("<svg><path stroke=\"#0072B2\" fill=\"#FFFFFF\"/></svg>"));
        assert!(html.contains("stroke=\"var(--blue)\" fill=\"var(--paper)\""), "{html}");
        for colour in ALL.iter().chain(&COLOURS) {
            assert_eq!(html.matches(&format!("--{}:", colour.name)).count(), 2, "{}", colour.name);
        }
    }
}
