//! A chart: series of points over two axes, as lines, as dots or as both.

use std::fmt::Write as _;

use super::{COLOURS, GRID, LETTER, WIDTH, digits, escaped, key};
use crate::text::cut_to;

/// An axis.
#[derive(Debug, Clone, Default)]
pub struct Axis<'a> {
    /// What is along it, with its unit.
    pub what: &'a str,
    /// Names of the numbers 0, 1, …, where they stand for things.
    pub names: &'a [String],
    /// A number that the axis has, whatever the points are: 0 for shares.
    pub with: Option<f64>,
}

/// Points that belong together.
#[derive(Debug, Clone)]
pub struct Series<'a> {
    /// What they are.
    pub name: &'a str,
    /// Where they are; those that are not finite leave a gap.
    pub points: Vec<(f64, f64)>,
    /// Whether they are joined by a line, in their order.
    pub line: bool,
    /// Whether each is a dot.
    pub dots: bool,
}

/// What a chart shows.
#[derive(Debug)]
pub struct Chart<'a> {
    /// What is to the right.
    pub x: Axis<'a>,
    /// What is upwards.
    pub y: Axis<'a>,
    /// What is drawn, with the colours in their order.
    pub series: &'a [Series<'a>],
}

const HEIGHT: f64 = 300.0;
/// What is left for numbers and words at each side.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const ABOVE: f64 = 12.0;
const BELOW: f64 = 48.0;

/// From the first to the last number of an axis, and the numbers that are written, in steps of 1, 2 or 5 times a power of ten.
#[derive(Debug, PartialEq)]
struct Range {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>, axis: &Axis, ticks: f64) -> Self {
        let finite = values.chain(axis.with).filter(|value| value.is_finite());
        let (mut low, mut high) =
            finite.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low <= 1e-12 * high.abs().max(low.abs()) {
            let half = if high == 0.0 { 1.0 } else { 0.5 * high.abs() };
            (low, high) = (low - half, high + half);
        }
        let rough = (high - low) / ticks;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| *step >= rough);
        let mut step = step.unwrap_or(10.0 * power);
        if !axis.names.is_empty() {
            step = step.max(1.0);
            let count = ((high - low) / step).floor() as usize;
            return Self { low, high, ticks: (0..=count).map(|i| low + step * i as f64).collect() };
        }
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let ticks = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { low: first * step, high: last * step, ticks }
    }

    fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }

    /// The number of a tick, with as many digits as the steps have.
    fn label(&self, axis: &Axis, tick: f64) -> String {
        if !axis.names.is_empty() {
            return axis.names.get(tick.round() as usize).cloned().unwrap_or_default();
        }
        let step = (self.high - self.low) / (self.ticks.len().max(2) - 1) as f64;
        let most = self.high.abs().max(self.low.abs());
        if !(1e-5..1e6).contains(&most) {
            return digits(if tick.abs() < 1e-9 * step { 0.0 } else { tick }).into_owned();
        }
        let places = (-(step * 1.001).log10().floor()).clamp(0.0, 9.0) as usize;
        // No zero has a sign.
        let tick = if tick.abs() < 1e-9 * step { 0.0 } else { tick };
        format!("{tick:.places$}")
    }
}

/// The drawing, with what its colours mean above it.
pub fn chart(chart: &Chart) -> String {
    let Chart { x, y, series } = chart;
    let points =
        || series.iter().flat_map(|series| &series.points).filter(|(x, y)| x.is_finite() && y.is_finite());
    let (across, up) = (Range::of(points().map(|p| p.0), x, 12.0), Range::of(points().map(|p| p.1), y, 5.0));
    let (width, height) = (f64::from(WIDTH) - LEFT - RIGHT, HEIGHT - ABOVE - BELOW);
    let at = |&(x, y): &(f64, f64)| (LEFT + width * across.share(x), ABOVE + height * (1.0 - up.share(y)));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" font-size=\"12\">\n",
        escaped(y.what)
    );
    let grid = GRID.css();
    for tick in &up.ticks {
        let (_, at_y) = at(&(across.low, *tick));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {at_y:.1}h{width}\" stroke=\"{grid}\" fill=\"none\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at_y + 4.0,
            escaped(&up.label(y, *tick))
        );
    }
    // Names are as long as there is room to the next one, and end where the drawing does.
    let room = width / (across.ticks.len().max(2) - 1) as f64;
    for tick in &across.ticks {
        let (at_x, _) = at(&(*tick, up.low));
        let bottom = ABOVE + height;
        let label = cut_to(&across.label(x, *tick), (room / LETTER) as usize);
        let half = 0.5 * LETTER * label.chars().count() as f64;
        let _ = writeln!(
            svg,
            "<path d=\"M{at_x:.1} {bottom}v4\" stroke=\"{grid}\" fill=\"none\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            at_x.min(f64::from(WIDTH) - half).max(half),
            bottom + 17.0,
            escaped(&label)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"13\">{}</text>\
         <text transform=\"translate(14 {:.1}) rotate(-90)\" text-anchor=\"middle\" font-size=\"13\">{}</text>",
        LEFT + 0.5 * width,
        HEIGHT - 8.0,
        escaped(x.what),
        ABOVE + 0.5 * height,
        escaped(y.what)
    );
    for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        draw(&mut svg, series, &colour.css(), at);
    }
    let named = series.iter().map(|series| series.name).zip(COLOURS.iter().cycle().copied());
    key("", named) + &svg + "</svg>\n"
}

fn draw(svg: &mut String, series: &Series, colour: &str, at: impl Fn(&(f64, f64)) -> (f64, f64)) {
    let is_there = |(x, y): &(f64, f64)| x.is_finite() && y.is_finite();
    if series.line {
        let mut path = String::new();
        for piece in series.points.split(|point| !is_there(point)) {
            for (number, point) in piece.iter().enumerate() {
                let (x, y) = at(point);
                let _ = write!(path, "{}{x:.1} {y:.1}", if number == 0 { "M" } else { "L" });
            }
        }
        let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"2\" fill=\"none\"/>");
    }
    for point in series.points.iter().filter(|point| series.dots && is_there(point)) {
        let (x, y) = at(point);
        let title = escaped(&format!("{}: {}, {}", series.name, digits(point.0), digits(point.1)));
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{title}</title></circle>"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers_around_all_points() {
        let range = |values: &[f64], with| {
            let axis = Axis { with, ..Axis::default() };
            let range = Range::of(values.iter().copied(), &axis, 5.0);
            let labels: Vec<String> = range.ticks.iter().map(|tick| range.label(&axis, *tick)).collect();
            (range.low, range.high, labels.join(" "))
        };
        assert_eq!(range(&[0.03, 0.97], None), (0.0, 1.0, "0.0 0.2 0.4 0.6 0.8 1.0".into()));
        assert_eq!(range(&[3.0, 12.0], Some(0.0)), (0.0, 15.0, "0 5 10 15".into()));
        assert_eq!(range(&[-0.2, 0.1, f64::NAN], None).2, "-0.2 -0.1 0.0 0.1");
        assert_eq!(range(&[7.0], None), (2.0, 12.0, "2 4 6 8 10 12".into()));
        assert_eq!(range(&[], None).2, "0.0 0.2 0.4 0.6 0.8 1.0");
    }

    #[test]
    fn names_of_an_axis_end_within_the_drawing() {
        let names = ["task_arithmetic", "ties", "a long name of a <model>"].map(str::to_owned);
        let points = vec![(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)];
        let series = [Series { name: "a", points, line: false, dots: true }];
        let x = Axis { names: &names, ..Axis::default() };
        let svg = chart(&Chart { x, y: Axis::default(), series: &series });
        for name in ["task_arithmetic", "ties", "a long name of a &lt;model&gt;"] {
            let (before, _) = svg.split_once(&format!("\" text-anchor=\"middle\">{name}<")).unwrap();
            let (_, x) = before.rsplit_once("<text x=\"").unwrap();
            let x: f64 = x.split('"').next().unwrap().parse().unwrap();
            assert!(x + 0.5 * LETTER * name.len().min(24) as f64 <= f64::from(WIDTH), "{name} at {x}");
        }
    }

    #[test]
    fn what_is_not_finite_leaves_a_gap() {
        let points = vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0), (3.0, 1.0)];
        let series = [Series { name: "a<", points, line: true, dots: true }];
        let svg = chart(&Chart { x: Axis::default(), y: Axis::default(), series: &series });
        assert!(!svg.contains("NaN") && svg.contains("a&lt;: 2.00, 3.00"), "{svg}");
        let line = svg.lines().find(|line| line.contains("stroke-width=\"2\"")).unwrap();
        assert_eq!((line.matches('M').count(), line.matches('L').count()), (2, 1), "{line}");
        assert_eq!(svg.matches("<circle").count(), 3);
    }
}
