//! What `bench merge` measured, as one page of HTML that needs nothing beside it: tables, and two drawings as SVG.
//!
//! The roofline shows merged parameters a second over parameters per byte moved, both in logarithms. A merge is a point.
//! The slanted roofs are what moving bytes allows: a plain copy in memory, and the floor of the machine. The level one is
//! what the arithmetic alone allows, by the time that it took in this merge. The strip shows what threads and device did
//! from the first read to the last write.

use std::fmt::Write as _;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::merge::{MergeTimes, Strip, StripRow};
use crate::page::{
    self, COLOURS, Colour, DIM, GRID, WIDTH, digits, document, escaped, heading, key, note, table, themed,
    today,
};
use crate::text::bytes;

/// The heights of the drawings, in the units of their width.
const ROOF_HEIGHT: u32 = 420;
const STRIP_HEIGHT: u32 = 260;

/// A stage's colour.
fn colour(stage: &str) -> Colour {
    let [blue, vermilion, green, purple, orange, sky, yellow, grey] = COLOURS;
    match stage {
        "read" => blue,
        "copy in" => sky,
        "compute" => vermilion,
        "copy out" => purple,
        "device wait" => grey,
        "hash" => orange,
        "write wait" => yellow,
        _ => green,
    }
}

/// The same for plotters.
fn rgb(colour: Colour) -> RGBColor {
    let [red, green, blue] = colour.rgb();
    RGBColor(red, green, blue)
}

/// The page.
pub fn html(measured: &MergeTimes) -> String {
    let mut body = page::paragraph(&circumstances(measured));
    body += &figures(measured);
    body += &heading("Roofline");
    body += &roofline(measured).expect("text in memory can be drawn to");
    body += &note(
        "A parameter is an element of the output. Bytes are those of all inputs and of the output, each counted once. The \
         arithmetic's roof is the time of the compute stage in this merge, with nothing else to do.",
    );
    body += &heading("Stages");
    body += &stages(measured);
    if let Some(strip) = &measured.strip {
        body += &heading("What happened when");
        body += &strips(strip);
        body += &note("One more merge, whose single records were kept; it is in no table.");
    }
    body += &heading("Rounds");
    body += &rounds(measured);
    document(&title(measured), &body)
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
    format!(
        "mergeforge {} on {} ({} threads); {}, seed {}, density {}; {place}; medians of {} rounds; {}.",
        env!("CARGO_PKG_VERSION"),
        round.device,
        round.threads,
        setup.spec.float.name(),
        setup.spec.seed,
        setup.density,
        setup.repeat,
        today(),
    )
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
    let mut html = table(&["", "seconds", "GB/s", "share of floor"], rows);
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
    table(
        &["stage", "busy seconds", "share of the time", "moved", "GB/s while at it"],
        stages.iter().map(row),
    )
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
    let head = ["floor, s", "floor, stored, s", "merge, s", "streaming, s", "storing, s", "CPU, s", "memory"];
    table(&head, measured.turns.iter().map(row))
}

type Drawn = Result<String, Box<dyn std::error::Error>>;

/// Text of a drawing.
fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&rgb(page::INK))
}

fn roofline(measured: &MergeTimes) -> Drawn {
    let (round, total) = (&measured.typical().round, measured.bytes() as f64);
    let billions = round.parameters as f64 / 1e9;
    let per_byte = round.parameters as f64 / total;
    let merge = billions / measured.median(|turn| turn.wall);
    // Billions of parameters a second: bytes a second times parameters per byte.
    let mut roofs = vec![
        ("copy in memory", measured.copy_rate / 1e9, DIM),
        ("floor", total / 1e9 / measured.median(|turn| turn.floor), COLOURS[0]),
    ];
    roofs.extend(measured.stored().map(|stored| ("floor, stored", total / 1e9 / stored, COLOURS[2])));
    let arithmetic = compute_seconds(round).map(|seconds| billions / seconds);
    let heights = roofs.iter().map(|(_, rate, _)| rate * per_byte).chain(arithmetic).chain([merge]);
    let (low, high) = heights.fold((f64::MAX, 0.0), |(low, high): (f64, f64), y| (low.min(y), high.max(y)));
    let (x_low, x_high) = (per_byte / 4.0, per_byte * 4.0);
    let (y_low, y_high) = (low / 6.0, high * 6.0);
    let named =
        |(name, rate, colour): &(&str, f64, Colour)| (format!("{name} {} GB/s", digits(*rate)), *colour);
    let mut html: Vec<(String, Colour)> = roofs.iter().map(named).collect();
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
            .light_line_style(TRANSPARENT)
            .axis_style(rgb(DIM))
            .bold_line_style(rgb(GRID))
            .x_desc("parameters per byte moved")
            .y_desc("billion parameters a second")
            .axis_desc_style(text(15))
            .label_style(text(13))
            .x_label_formatter(&|x| digits(*x).into_owned())
            .y_label_formatter(&|y| digits(*y).into_owned())
            .draw()?;
        for (_, rate, colour) in &roofs {
            let line = [x_low, x_high].map(|x| (x, rate * x));
            chart.draw_series(LineSeries::new(line, rgb(*colour).stroke_width(2)))?;
        }
        if let Some(level) = arithmetic {
            let line = [(x_low, level), (x_high, level)];
            chart.draw_series(LineSeries::new(line, rgb(colour("compute")).stroke_width(2)))?;
        }
        chart.draw_series([Circle::new((per_byte, merge), 6, rgb(page::INK).filled())])?;
        let label = format!("this merge: {} GB/s", digits(merge / per_byte));
        let style = text(15).pos(Pos::new(HPos::Left, VPos::Top));
        chart.draw_series([Text::new(label, (per_byte * 1.04, merge * 0.9), style)])?;
        root.present()?;
    }
    Ok(key("", html.iter().map(|(name, colour)| (&**name, *colour))) + &themed(&svg))
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

/// The threads' time, and below it the device's, if there is one.
fn strips(strip: &Strip) -> String {
    let mut html = String::new();
    for (by, what) in [("threads", "What the threads did:"), ("device", "What the device did, side by side:")]
    {
        let rows: Vec<&StripRow> = strip.rows.iter().filter(|row| row.by == by).collect();
        if !rows.is_empty() {
            html += &key(what, rows.iter().map(|row| (&*row.stage, colour(&row.stage))));
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
            .axis_style(rgb(DIM))
            .y_labels(5)
            .x_desc("seconds")
            .axis_desc_style(text(15))
            .label_style(text(13))
            .y_label_formatter(&|share| format!("{:.0} %", 100.0 * share))
            .x_label_formatter(&|seconds| digits(*seconds).into_owned())
            .draw()?;
        let mut below = vec![0.0; parts];
        for row in rows {
            let from = below.clone();
            let to: Vec<f64> = from.iter().zip(&row.shares).map(|(from, share)| from + share).collect();
            let colour = rgb(colour(&row.stage));
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
    Ok(themed(&svg))
}

/// A part as a step.
fn steps(part: f64, i: usize, y: f64) -> [(f64, f64); 2] {
    [(part * i as f64, y), (part * (i as f64 + 1.0), y)]
}
