//! The analysis as a page: findings, then pictures, each with the table behind it.

use std::fmt::Write as _;

use super::findings::{Finding, cosine, findings, percent};
use super::sums::{Sums, Task, pair};
use super::{Analysis, Group, QUANTILES};
use crate::page::{
    Axis, Chart, HeatMap, Scale, Series, chart, digits, document, escaped, folded, heading, heat_map, note,
    paragraph, table, today,
};

/// So many task vectors, and pairs of them, have a heat map of their own; the tables have all.
const DRAWN_MAX: usize = 3;
/// So many tensors stand in the table of all; `--json` has the rest.
const ROWS_MAX: usize = 2000;

/// A measure of a set of tensors.
type Measure<'a> = Box<dyn Fn(&Sums) -> Option<f64> + 'a>;

/// The page.
pub fn html(analysis: &Analysis) -> String {
    let page = Page { analysis, tasks: analysis.columns.tasks(), pairs: analysis.columns.task_pairs() };
    let mut body = paragraph(&page.circumstances());
    body += &page.findings();
    body += &heading("Models");
    body += &page.models();
    body += &heading("Pairs");
    body += &page.of_pairs();
    body += &page.maps();
    body += &page.profiles();
    body += &page.ranks();
    body += &super::predictions::html(analysis);
    body += &heading("By kind of module");
    body += &page.groups("module", &analysis.kinds);
    body += &heading("By layer");
    body += &folded("the table", &page.groups("layer", &analysis.layers));
    body += &heading("By tensor");
    body += &page.tensors();
    body += &heading("What the words mean");
    body += &meanings(analysis);
    document(
        &format!("mergeforge analyze: {} of {} models", analysis.method.name, analysis.columns.len()),
        &body,
    )
}

struct Page<'a> {
    analysis: &'a Analysis,
    tasks: Vec<usize>,
    pairs: Vec<(usize, usize)>,
}

fn number(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| digits(value).into_owned())
}

fn share(value: Option<f64>) -> String {
    value.map_or("–".into(), percent)
}

fn angle(value: Option<f64>) -> String {
    value.map_or("–".into(), cosine)
}

impl Page<'_> {
    fn short(&self, column: usize) -> &str {
        self.analysis.columns.short(column)
    }

    fn both(&self, (a, b): (usize, usize)) -> String {
        format!("{} and {}", self.short(a), self.short(b))
    }

    fn circumstances(&self) -> String {
        let Analysis { method, columns, tensors, whole, not_compared, .. } = self.analysis;
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        let base =
            columns.base.map_or("no base".into(), |base| format!("the base is {}", columns.name(base)));
        format!(
            "mergeforge {}, {}. A merge by {} of {}; {base}. {} tensors of {} elements are compared; {not_compared} come from one model.",
            env!("CARGO_PKG_VERSION"),
            today(),
            method.name,
            names.join(", "),
            tensors.len(),
            whole.sums.elements,
        )
    }

    fn findings(&self) -> String {
        let mut html = heading("Findings");
        html += "<ul>\n";
        for Finding { text, .. } in findings(self.analysis) {
            let _ = writeln!(html, "<li>{}</li>", escaped(&text));
        }
        let what = if self.analysis.predictions.is_empty() {
            "These follow"
        } else {
            "What is said of texts was measured on them, all else follows"
        };
        html + "</ul>\n"
            + &note(&format!(
                "{what} from the weights alone. Whether a merge does well is not among the findings."
            ))
    }

    fn models(&self) -> String {
        let Analysis { columns, whole, .. } = self.analysis;
        let sums = &whole.sums;
        if self.tasks.is_empty() {
            let row =
                |column: usize| [columns.name(column).to_owned(), number(Some(sums.models[column].norm()))];
            return table(&["model", "norm"], (0..columns.len()).map(row));
        }
        let row = |column: usize| {
            let task = self.tasks.contains(&column).then(|| &sums.tasks[column]);
            let quantiles = task.map(|_| self.analysis.quantiles(&whole.members, column));
            let mut row = vec![
                columns.name(column).to_owned(),
                number(Some(sums.models[column].norm())),
                number(task.map(|task| task.one.norm())),
                share(task.and_then(Task::relative)),
                share(task.and_then(|_| sums.pull(column))),
                share(task.and_then(Task::zero_share)),
            ];
            row.extend((0..QUANTILES.len()).map(|i| number(quantiles.map(|all| f64::from(all[i])))));
            row.push(number(task.map(|task| f64::from(task.largest))));
            row
        };
        let quantiles = QUANTILES.map(|share| format!("{} % of |δ|", (100.0 * share).round()));
        let mut head: Vec<&str> = vec!["model", "norm", "‖δ‖", "‖δ‖ / ‖base‖", "share of the merge", "zeros"];
        head.extend(quantiles.iter().map(String::as_str));
        head.push("largest |δ|");
        table(&head, (0..columns.len()).map(row))
            + &note(
                "δ is a task vector: the model less the base. Its share of the merge is that in the square of the sum of all task \
                 vectors with the config's weights, before anything is trimmed.",
            )
    }

    fn of_pairs(&self) -> String {
        let columns = &self.analysis.columns;
        let sums = &self.analysis.whole.sums;
        let place = |(a, b): (usize, usize)| pair(a, b);
        let slerp = format!("SLERP from linear, {}", self.analysis.place_in_words());
        let models = columns.pairs().into_iter().map(|of| {
            let pair = &sums.pairs[place(of)];
            [self.both(of), angle(pair.cosine()), share(pair.slerp_from_lerp())]
        });
        let mut html = table(&["models", "cosine of the weights", &slerp], models);
        if !self.pairs.is_empty() {
            let rows = self.pairs.iter().map(|of| {
                let pair = &sums.task_pairs[place(*of)];
                [
                    self.both(*of),
                    angle(pair.cosine()),
                    share(pair.both_share()),
                    share(pair.disagree_share()),
                    share(pair.mass_disagree_share()),
                    share(pair.overlap()),
                    share(pair.overlap_by_chance()),
                    share(pair.kept_too(0)),
                    share(pair.kept_too(1)),
                ]
            });
            let head = [
                "task vectors",
                "cosine",
                "both changed",
                "signs differ",
                "mass there",
                "kept by both",
                "by chance",
                "of the first's",
                "of the second's",
            ];
            html += &table(&head, rows);
            html += &note(&format!("Kept is what trimming keeps at {}.", self.analysis.density_in_words()));
        }
        html
    }

    /// The measures that are drawn, each with the largest number of its scale where that is fixed.
    fn measures(&self) -> Vec<(String, Option<Scale>, Measure<'_>)> {
        let mut measures: Vec<(String, Option<Scale>, Measure)> = Vec::new();
        for &column in self.tasks.iter().take(DRAWN_MAX) {
            let what = format!("‖δ‖ / ‖base‖ of {}", self.short(column));
            measures.push((what, None, Box::new(move |sums| sums.tasks[column].relative())));
        }
        for of in self.pairs.iter().take(DRAWN_MAX) {
            let (names, place) = (self.both(*of), pair(of.0, of.1));
            let what = format!("cosine of the task vectors of {names}");
            let scale = Some(Scale::Signed(1.0));
            measures.push((what, scale, Box::new(move |sums| sums.task_pairs[place].cosine())));
            let what = format!("share of the magnitudes where signs differ, {names}");
            let scale = Some(Scale::From(0.0, 1.0));
            measures.push((what, scale, Box::new(move |sums| sums.task_pairs[place].mass_disagree_share())));
            let what = format!("share kept by both of all that trimming keeps of either, {names}");
            measures.push((what, scale, Box::new(move |sums| sums.task_pairs[place].overlap())));
        }
        if self.pairs.is_empty() {
            for of in self.analysis.columns.pairs().into_iter().take(DRAWN_MAX) {
                let (what, place) =
                    (format!("1 − cosine of the weights of {}", self.both(of)), pair(of.0, of.1));
                let apart: Measure =
                    Box::new(move |sums| sums.pairs[place].cosine().map(|cosine| 1.0 - cosine));
                measures.push((what, None, apart));
            }
        }
        measures
    }

    /// Heat maps of layers and kinds of modules.
    fn maps(&self) -> String {
        let Analysis { layers, kinds, tensors, columns, .. } = self.analysis;
        if layers.is_empty() {
            return String::new();
        }
        // Tensors of no layer stand in a column of their own.
        let mut names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
        let is_loose = tensors.iter().any(|tensor| tensor.layer.is_none());
        names.extend(is_loose.then(|| "none".to_owned()));
        let rows: Vec<String> = kinds.iter().map(|kind| kind.name.clone()).collect();
        let mut cells: Vec<Option<Sums>> = vec![None; rows.len() * names.len()];
        for tensor in tensors {
            let cell = &mut cells[tensor.kind * names.len() + tensor.layer.unwrap_or(layers.len())];
            cell.get_or_insert_with(|| Sums::new(columns.len())).add(&tensor.sums);
        }
        let mut html = heading("Layers and modules");
        for (what, scale, measure) in self.measures() {
            let values: Vec<Option<f64>> = cells.iter().map(|cell| measure(cell.as_ref()?)).collect();
            let most = values.iter().flatten().copied().fold(0.0, f64::max);
            let scale = scale.unwrap_or(Scale::From(0.0, most));
            let map = HeatMap {
                what: &what,
                rows: &rows,
                columns: &names,
                columns_are: "layer",
                values: &values,
                scale,
                marks: &[],
            };
            html += &heat_map(&map);
            let mut head = vec!["module"];
            head.extend(names.iter().map(String::as_str));
            let table_rows = rows.iter().zip(values.chunks(names.len())).map(|(name, values)| {
                std::iter::once(name.clone())
                    .chain(values.iter().map(|value| number(*value)))
                    .collect::<Vec<_>>()
            });
            html += &folded("the numbers", &table(&head, table_rows));
        }
        html
    }

    /// Lines over the layers.
    fn profiles(&self) -> String {
        let layers = &self.analysis.layers;
        if layers.len() < 2 {
            return String::new();
        }
        let names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
        let line = |measure: &dyn Fn(&Sums) -> Option<f64>| -> Vec<(f64, f64)> {
            let at =
                |(number, layer): (usize, &Group)| (number as f64, measure(&layer.sums).unwrap_or(f64::NAN));
            layers.iter().enumerate().map(at).collect()
        };
        let drawn = |what: &str, lines: Vec<(String, Vec<(f64, f64)>)>| {
            let series: Vec<Series> = lines
                .iter()
                .map(|(name, points)| Series {
                    name,
                    points: points.clone(),
                    line: true,
                    dots: layers.len() <= 40,
                })
                .collect();
            chart(&Chart {
                x: Axis { what: "layer", names: &names, with: None },
                y: Axis { what, names: &[], with: Some(0.0) },
                series: &series,
            })
        };
        let mut html = heading("Over the layers");
        if self.tasks.is_empty() {
            let pairs = self.analysis.columns.pairs();
            let of = |of: &(usize, usize)| {
                let place = pair(of.0, of.1);
                (self.both(*of), line(&|sums| sums.pairs[place].cosine().map(|cosine| 1.0 - cosine)))
            };
            return html + &drawn("1 − cosine of the weights", pairs.iter().map(of).collect());
        }
        let relative =
            |column: &usize| (self.short(*column).to_owned(), line(&|sums| sums.tasks[*column].relative()));
        html += &drawn("‖δ‖ / ‖base‖", self.tasks.iter().map(relative).collect());
        if !self.pairs.is_empty() {
            let cosines = |of: &(usize, usize)| {
                let place = pair(of.0, of.1);
                (self.both(*of), line(&|sums| sums.task_pairs[place].cosine()))
            };
            html += &drawn("cosine of task vectors", self.pairs.iter().map(cosines).collect());
            let lines = vec![
                ("mass where signs differ".to_owned(), line(&|sums| sums.vote.mass_disagree_share())),
                ("outvoted".to_owned(), line(&|sums| sums.vote.outvoted_share())),
                ("outvoted of what is kept".to_owned(), line(&|sums| sums.vote.kept_outvoted_share())),
            ];
            html += &drawn("share of the magnitudes", lines);
        }
        html + &note("The table below, by layer, has these numbers.")
    }

    fn ranks(&self) -> String {
        if self.analysis.ranks.is_empty() {
            return String::new();
        }
        let rows = self.analysis.ranks.iter().map(|rank| {
            [
                rank.tensor.clone(),
                self.short(rank.column).to_owned(),
                format!("{} × {}", rank.shape.0, rank.shape.1),
                number(rank.effective),
                number(rank.stable),
                rank.of_90_percent.to_string(),
            ]
        });
        let head = ["tensor", "task vector of", "matrix", "effective rank", "stable rank", "rank of 90 %"];
        heading("Ranks") + &table(&head, rows)
    }

    /// The columns of a table of groups or tensors, behind the first two.
    fn head(&self) -> Vec<String> {
        let mut head = Vec::new();
        for column in &self.tasks {
            head.push(format!("‖δ‖ / ‖base‖, {}", self.short(*column)));
            head.push(format!("zeros, {}", self.short(*column)));
        }
        for of in &self.pairs {
            head.push(format!("cosine, {}", self.both(*of)));
            head.push(format!("mass where signs differ, {}", self.both(*of)));
            head.push(format!("kept by both, {}", self.both(*of)));
        }
        if !self.pairs.is_empty() {
            head.push("outvoted".into());
            head.push("outvoted of what is kept".into());
        }
        if self.pairs.is_empty() {
            head.extend(
                self.analysis.columns.pairs().into_iter().map(|of| format!("cosine, {}", self.both(of))),
            );
        }
        head
    }

    fn row(&self, name: &str, sums: &Sums) -> Vec<String> {
        let mut row = vec![name.to_owned(), sums.elements.to_string()];
        for column in &self.tasks {
            row.push(share(sums.tasks[*column].relative()));
            row.push(share(sums.tasks[*column].zero_share()));
        }
        for (a, b) in &self.pairs {
            let of = &sums.task_pairs[pair(*a, *b)];
            row.extend([angle(of.cosine()), share(of.mass_disagree_share()), share(of.overlap())]);
        }
        if self.pairs.is_empty() {
            row.extend(
                self.analysis
                    .columns
                    .pairs()
                    .into_iter()
                    .map(|(a, b)| angle(sums.pairs[pair(a, b)].cosine())),
            );
        } else {
            row.extend([share(sums.vote.outvoted_share()), share(sums.vote.kept_outvoted_share())]);
        }
        row
    }

    fn rows<'b>(&self, what: &str, of: impl Iterator<Item = (&'b str, &'b Sums)>) -> String {
        let head: Vec<String> =
            [what.to_owned(), "elements".to_owned()].into_iter().chain(self.head()).collect();
        table(&head, of.map(|(name, sums)| self.row(name, sums)))
    }

    fn groups(&self, what: &str, groups: &[Group]) -> String {
        let whole = std::iter::once(&self.analysis.whole);
        self.rows(what, groups.iter().chain(whole).map(|group| (group.name.as_str(), &group.sums)))
    }

    fn tensors(&self) -> String {
        let tensors = &self.analysis.tensors;
        let rows = tensors.iter().take(ROWS_MAX).map(|tensor| (tensor.name.as_str(), &tensor.sums));
        let html = folded(&format!("{} tensors", tensors.len().min(ROWS_MAX)), &self.rows("tensor", rows));
        match tensors.len().saturating_sub(ROWS_MAX) {
            0 => html,
            more => html + &note(&format!("{more} more are in the output of --json.")),
        }
    }
}

fn meanings(analysis: &Analysis) -> String {
    let sampled = analysis.tensors.iter().filter(|tensor| tensor.sample < tensor.sums.elements).count();
    let meanings = [
        ("norm", "the Frobenius norm: the root of the sum of squares of all elements."),
        (
            "signs differ",
            "the share of elements at which both task vectors are not 0 and have different signs.",
        ),
        (
            "mass",
            "the sum of magnitudes; mass where signs differ is the share of both task vectors' magnitudes at such elements.",
        ),
        (
            "outvoted",
            "of each element the magnitudes of the smaller side of the vote, over all magnitudes: what an election of signs takes out. \
             Of what is kept: after trimming, with the config's weights.",
        ),
        (
            "kept by both",
            "elements that trimming keeps of both task vectors, over those that it keeps of either; by chance is what independent \
             choices would give.",
        ),
        (
            "SLERP from linear",
            "the norm of the difference of the two interpolations, tensor by tensor, over the norm of the spherical one.",
        ),
        (
            "effective rank",
            "the exponential of the entropy of the singular values, as shares of their sum: k equal ones have k.",
        ),
        ("stable rank", "the square of the Frobenius norm over the square of the largest singular value."),
        ("rank of 90 %", "the fewest singular values whose squares add up to 90 % of all squares."),
    ];
    let mut html = "<ul>\n".to_owned();
    for (word, meaning) in meanings {
        let _ = writeln!(html, "<li><b>{}</b>: {}</li>", escaped(word), escaped(meaning));
    }
    html += "</ul>\n";
    if sampled > 0 && analysis.columns.base.is_some() {
        html += &note(&format!(
            "Norms, cosines, signs, zeros and masses are of all elements. Quantiles and what trimming keeps are of all elements of small \
             tensors, and of a sample of {sampled} larger ones (262,144 elements at most, 131,072 at least with up to 32 models): a \
             share of elements then has a standard error of 0.14 % at most."
        ));
    }
    html
}
