//! What `bench merge` measured, as one page of HTML that needs nothing beside it: tables, and two drawings as SVG.
//!
//! The roofline shows merged parameters a second over parameters per byte moved, both in logarithms. A merge is a point.
//! The slanted roofs are what moving bytes allows: a plain copy in memory, and the floor of the machine. The level one is
//! what the arithmetic alone allows, by the time that it took in this merge. The strip shows what threads and device did
//! from the first read to the last write.

use std::fmt::Write as _;
use std::time::SystemTime;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::merge::{MergeTimes, Strip, StripRow};
use crate::text::bytes;

/// A drawing's size in pixels; it scales with the page.
const WIDTH: u32 = 960;
const ROOF_HEIGHT: u32 = 420;
const STRIP_HEIGHT: u32 = 260;

/// A stage's colour, distinct for colour-blind readers too (Okabe and Ito).
fn colour(stage: &str) -> RGBColor {
    match stage {
        "read" => RGBColor(0, 114, 178),
        "copy in" => RGBColor(86, 180, 233),
        "compute" => RGBColor(213, 94, 0),
        "copy out" => RGBColor(204, 121, 167),
        "device wait" => GREY,
        "hash" => RGBColor(230, 159, 0),
        "write wait" => RGBColor(240, 228, 66),
        _ => RGBColor(0, 158, 115),
    }
}

const INK: RGBColor = RGBColor(40, 40, 40);
const GREY: RGBColor = RGBColor(130, 130, 130);

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:60rem;margin:2rem auto;\
                     padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:\
                     collapse}th,td{padding:.2rem .9rem .2rem 0;text-align:right;border-bottom:1px solid #ddd}\
                     th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}.key span{display:\
                     inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}p.note{color:#555}";

/// The page.
pub fn html(measured: &MergeTimes) -> String {
    let title = escaped(&title(measured));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{}</p>\n",
        escaped(&circumstances(measured))
    );
    page += &figures(measured);
    page += "<h2>Roofline</h2>\n";
    page += &roofline(measured).expect("text in memory can be drawn to");
    page += "<p class=\"note\">A parameter is an element of the output. Bytes are those of all inputs and of the output, each \
             counted once. The arithmetic's roof is the time of the compute stage in this merge, with nothing else to do.\
             </p>\n<h2>Stages</h2>\n";
    page += &stages(measured);
    if let Some(strip) = &measured.strip {
        page += "<h2>What happened when</h2>\n";
        page += &strips(strip);
        page += "<p class=\"note\">One more merge, whose single records were kept; it is in no table.</p>\n";
    }
    page += "<h2>Rounds</h2>\n";
    page += &rounds(measured);
    page += "</body>\n</html>\n";
    page
}

fn title(measured: &MergeTimes) -> String {
    let setup = &measured.setup;
    let shape = setup.spec.shape;
    format!(
        "mergeforge: {} of {} models, {} ({} layers)",
        setup.method.name, setup.models, shape.name, shape.layers
    )
}

fn circumstances(measured: &MergeTimes) -> String {
    let (setup, round) = (&measured.setup, &measured.typical().round);
    let place = match (measured.in_memory, setup.cold) {
        (true, _) => "inputs and output in memory",
        (false, false) => "on a disk, inputs in the page cache",
        (false, true) => "on a disk, inputs not in the page cache",
    };
    let days =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400);
    format!(
        "mergeforge {} on {} ({} threads); {}, seed {}, density {}; {place}; medians of {} rounds; {}.",
        env!("CARGO_PKG_VERSION"),
        round.device,
        round.threads,
        setup.spec.float.name(),
        setup.spec.seed,
        setup.density,
        setup.repeat,
        date(days),
    )
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

fn figures(measured: &MergeTimes) -> String {
    let gb = measured.bytes() as f64 / 1e9;
    let rate = |seconds: f64| format!("{:.2}", gb / seconds);
    let share = |share: f64| format!("{:.0} %", 100.0 * share);
    let seconds = |seconds: f64| format!("{seconds:.3}");
    let (floor, wall) = (measured.median(|turn| turn.floor), measured.median(|turn| turn.wall));
    let streaming = measured.median(|turn| turn.round.streaming_seconds);
    let mut rows = vec![
        ["copy in memory".into(), String::new(), format!("{:.2}", measured.copy_rate / 1e9), String::new()],
        ["floor".into(), seconds(floor), rate(floor), String::new()],
    ];
    if let Some(stored) = measured.stored() {
        rows.push(["floor, stored".into(), seconds(stored), rate(stored), String::new()]);
    }
    rows.push(["merge".into(), seconds(wall), rate(wall), share(measured.share_of_floor())]);
    rows.push([
        "of it, first read to last write".into(),
        seconds(streaming),
        rate(streaming),
        share(measured.streaming_share()),
    ]);
    let round = &measured.typical().round;
    let mut html = table(["", "seconds", "GB/s", "share of floor"], &rows);
    let _ = writeln!(
        html,
        "<p>{} in, {} out. {}{}{}.</p>",
        bytes(round.input_bytes),
        bytes(round.output_bytes),
        measured.peak_bytes().map_or(String::new(), |peak| format!("At most {} of memory. ", bytes(peak))),
        measured.cpu_seconds().map_or(String::new(), |cpu| format!("{cpu:.2} CPU seconds. ")),
        escaped(&sentence(&round.held_back)),
    );
    html
}

fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn stages(measured: &MergeTimes) -> String {
    let stages = measured.typical().round.stages.as_array().cloned().unwrap_or_default();
    let number = |stage: &Value, name: &str| stage[name].as_f64().unwrap_or(0.0);
    let word = |stage: &Value, name: &str| stage[name].as_str().unwrap_or_default().to_string();
    let row = |stage: &Value| {
        [
            format!("{}, {}", word(stage, "stage"), word(stage, "by")),
            format!("{:.3}", number(stage, "busy_seconds")),
            format!("{:.1} %", 100.0 * number(stage, "share")),
            bytes(stage["bytes"].as_u64().unwrap_or(0)),
            format!("{:.2}", number(stage, "gb_per_s")),
        ]
    };
    let rows: Vec<_> = stages.iter().map(row).collect();
    table(["stage", "busy seconds", "share of the time", "moved", "GB/s while at it"], &rows)
}

fn rounds(measured: &MergeTimes) -> String {
    let row = |turn: &super::merge::Turn| {
        [
            format!("{:.3}", turn.floor),
            turn.stored.map_or("–".into(), |stored| format!("{stored:.3}")),
            format!("{:.3}", turn.wall),
            format!("{:.3}", turn.round.streaming_seconds),
            format!("{:.3}", turn.round.finishing_seconds),
            turn.round.cpu_seconds.map_or("–".into(), |cpu| format!("{cpu:.2}")),
            turn.round.peak_bytes.map_or("–".into(), bytes),
        ]
    };
    let rows: Vec<_> = measured.turns.iter().map(row).collect();
    table(
        ["floor, s", "floor, stored, s", "merge, s", "streaming, s", "storing, s", "CPU, s", "memory"],
        &rows,
    )
}

fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut html = "<table>\n".to_string();
    let mut row = |tag: &str, cells: &mut dyn Iterator<Item = &str>| {
        html += "<tr>";
        cells.for_each(|cell| html += &format!("<{tag}>{}</{tag}>", escaped(cell)));
        html += "</tr>\n";
    };
    row("th", &mut head.into_iter());
    rows.iter().for_each(|cells| row("td", &mut cells.iter().map(String::as_str)));
    html + "</table>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

/// Text of a drawing.
fn text(size: u32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

fn roofline(measured: &MergeTimes) -> Drawn {
    let (round, total) = (&measured.typical().round, measured.bytes() as f64);
    let billions = round.parameters as f64 / 1e9;
    let per_byte = round.parameters as f64 / total;
    let merge = billions / measured.median(|turn| turn.wall);
    // Billions of parameters a second: bytes a second times parameters per byte.
    let mut roofs = vec![
        ("copy in memory", measured.copy_rate / 1e9, GREY),
        ("floor", total / 1e9 / measured.median(|turn| turn.floor), RGBColor(0, 114, 178)),
    ];
    roofs.extend(
        measured.stored().map(|stored| ("floor, stored", total / 1e9 / stored, RGBColor(0, 158, 115))),
    );
    let arithmetic = compute_seconds(round).map(|seconds| billions / seconds);
    let heights = roofs.iter().map(|(_, rate, _)| rate * per_byte).chain(arithmetic).chain([merge]);
    let (low, high) = heights.fold((f64::MAX, 0.0), |(low, high): (f64, f64), y| (low.min(y), high.max(y)));
    let (x_low, x_high) = (per_byte / 4.0, per_byte * 4.0);
    let (y_low, y_high) = (low / 6.0, high * 6.0);
    let named =
        |(name, rate, colour): &(&str, f64, RGBColor)| (format!("{name} {} GB/s", digits(*rate)), *colour);
    let mut html: Vec<(String, RGBColor)> = roofs.iter().map(named).collect();
    let alone = |level| format!("arithmetic alone {} billion parameters a second", digits(level));
    html.extend(arithmetic.map(|level| (alone(level), colour("compute"))));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, ROOF_HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(50)
            .y_label_area_size(70)
            .build_cartesian_2d((x_low..x_high).log_scale(), (y_low..y_high).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(225, 225, 225))
            .x_desc("parameters per byte moved")
            .y_desc("billion parameters a second")
            .axis_desc_style(text(15, INK))
            .label_style(text(13, INK))
            .x_label_formatter(&|x| digits(*x))
            .y_label_formatter(&|y| digits(*y))
            .draw()?;
        for (_, rate, colour) in &roofs {
            let line = [x_low, x_high].map(|x| (x, rate * x));
            chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
        }
        if let Some(level) = arithmetic {
            let line = [(x_low, level), (x_high, level)];
            chart.draw_series(LineSeries::new(line, colour("compute").stroke_width(2)))?;
        }
        chart.draw_series([Circle::new((per_byte, merge), 6, INK.filled())])?;
        let label = format!("this merge: {} GB/s", digits(merge / per_byte));
        let style = text(15, INK).pos(Pos::new(HPos::Left, VPos::Top));
        chart.draw_series([Text::new(label, (per_byte * 1.04, merge * 0.9), style)])?;
        root.present()?;
    }
    Ok(key("", &html) + &svg)
}

/// What the colours of a drawing mean.
fn key(what: &str, colours: &[(String, RGBColor)]) -> String {
    let mut html = format!("<p class=\"key\">{what}");
    for (name, RGBColor(r, g, b)) in colours {
        let _ = write!(html, "<span style=\"background:#{r:02x}{g:02x}{b:02x}\"></span>{}", escaped(name));
    }
    html + "</p>\n"
}

/// What the arithmetic would take by itself: on a device its busy time, else that of all threads side by side.
fn compute_seconds(round: &super::merge::Round) -> Option<f64> {
    let stages = round.stages.as_array()?;
    let busy = |by: &str| {
        let stage = stages.iter().find(|stage| stage["stage"] == "compute" && stage["by"] == by)?;
        stage["busy_seconds"].as_f64().filter(|seconds| *seconds > 0.0)
    };
    busy("device").or_else(|| Some(busy("threads")? / round.threads as f64))
}

/// Three digits that count.
fn digits(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let places = (2 - value.abs().max(1e-9).log10().floor() as i32).clamp(0, 9) as usize;
    format!("{value:.places$}")
}

/// The threads' time, and below it the device's, if there is one.
fn strips(strip: &Strip) -> String {
    let mut html = String::new();
    for (by, what) in [("threads", "What the threads did:"), ("device", "What the device did, side by side:")]
    {
        let rows: Vec<&StripRow> = strip.rows.iter().filter(|row| row.by == by).collect();
        if !rows.is_empty() {
            let colours: Vec<_> = rows.iter().map(|row| (row.stage.clone(), colour(&row.stage))).collect();
            html += &key(what, &colours);
            html += &draw_strip(strip.part_seconds, &rows, by == "threads")
                .expect("text in memory can be drawn to");
        }
    }
    html
}

/// Threads share out their time, so their stages are stacked; those of a device overlap.
fn draw_strip(part: f64, rows: &[&StripRow], stacked: bool) -> Drawn {
    let parts = rows.iter().map(|row| row.shares.len()).max().unwrap_or(0);
    let wall = (part * parts as f64).max(1e-6);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, STRIP_HEIGHT)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..wall, 0.0..1.0)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .y_labels(5)
            .x_desc("seconds")
            .axis_desc_style(text(15, INK))
            .label_style(text(13, INK))
            .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
            .x_label_formatter(&|seconds| digits(*seconds))
            .draw()?;
        let mut below = vec![0.0; parts];
        for row in rows {
            let from = below.clone();
            let to: Vec<f64> = from.iter().zip(&row.shares).map(|(from, share)| from + share).collect();
            let colour = colour(&row.stage);
            if stacked {
                let upper = to.iter().enumerate().flat_map(|(i, &y)| steps(part, i, y));
                let lower = from.iter().enumerate().flat_map(|(i, &y)| steps(part, i, y));
                let mut outline: Vec<(f64, f64)> = lower.collect();
                outline.reverse();
                let outline: Vec<(f64, f64)> = upper.chain(outline).collect();
                chart.draw_series([Polygon::new(outline, colour.filled())])?;
                below = to;
            } else {
                let line = row.shares.iter().enumerate().flat_map(|(i, &y)| steps(part, i, y));
                chart.draw_series(LineSeries::new(line, colour.stroke_width(2)))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}

/// A part as a step.
fn steps(part: f64, i: usize, y: f64) -> [(f64, f64); 2] {
    [(part * i as f64, y), (part * (i as f64 + 1.0), y)]
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
        for (value, expected) in [(123.4, "123"), (1.234, "1.23"), (0.012_34, "0.0123"), (0.0, "0")] {
            assert_eq!(digits(value), expected);
        }
    }

    #[test]
    fn nothing_in_a_table_is_markup() {
        let html = table(["a<b"], &[["\"x\" & y".into()]]);
        assert!(html.contains("<th>a&lt;b</th>") && html.contains("&quot;x&quot; &amp; y"), "{html}");
    }
}
