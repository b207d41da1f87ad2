//! Points that another program chooses: a line of JSON for each question, and one for each answer.
//!
//! Standard output carries nothing else. What is wrong with a question is its answer; what would be wrong with the next one as well
//! ends the sweep, as it ends any other.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Map, Value as Json, json};

use super::found::{Found, best_config};
use crate::cli::progress::Progress;
use crate::cli::show;
use crate::config::Values;
use crate::error::{Error, Result};
use crate::limits::QUESTION_BYTES_MAX;
use crate::stream::Watch;
use crate::sweep::{Answer, Direction, Predictions, Request, Scores, Sweeping};
use crate::text::{bytes, cut_to, escaped};

/// What is asked about.
pub(super) struct Served<'s> {
    pub(super) request: &'s Request,
    pub(super) predictions: Option<&'s Predictions>,
    /// Tokens that a try reads, and all.
    pub(super) tokens: Option<[usize; 2]>,
    pub(super) direction: Direction,
}

/// A line of standard input.
#[derive(Debug, PartialEq)]
enum Question {
    /// A point.
    Point(Json),
    /// Some, which may go through the models together.
    Points(Vec<Json>),
    /// No more; which is the best?
    Best,
}

/// Time from one look at the user's wish to stop to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Time in which a program that ends closes standard output after standard input.
const CLOSES_WITHIN: Duration = Duration::from_millis(250);

const FORMS: &str = r#"a line is {"point": {NAME: VALUE, …}}, {"points": [{…}, …]} or {"best": true}"#;

/// Answers until the best is asked for, or nothing comes any more.
///
/// # Errors
/// Those of [`Sweeping::answer`]; nothing was measured; questions cannot be read, or nobody reads the answers any more.
pub(super) fn serve(sweeping: &mut Sweeping<'_>, served: &Served<'_>, progress: &Progress) -> Result<()> {
    show::json_line(&served.greeting(sweeping)?);
    let nothing = || Error::config("no candidate was measured").hint(FORMS);
    let lines = lines(io::stdin()).map_err(|cause| Error::output(format!("cannot listen: {cause}")))?;
    loop {
        if progress.stop() {
            return Err(Error::interrupted());
        }
        if is_closed(&io::stdout(), Duration::ZERO) {
            return Err(unread());
        }
        let line = match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => line?,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) if sweeping.known().is_empty() => return Err(nothing()),
            // What is left may take hours, and whoever asked may have crashed.
            Err(RecvTimeoutError::Disconnected) if is_closed(&io::stdout(), CLOSES_WITHIN) => {
                return Err(unread());
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let answer = match line.and_then(|line| Question::read(&line)) {
            Ok(Question::Best) if sweeping.known().is_empty() => refusal(&nothing()),
            Ok(Question::Best) => return Ok(()),
            Ok(Question::Point(point)) => served.answers(sweeping, vec![point])?.remove(0),
            Ok(Question::Points(points)) => json!({ "points": served.answers(sweeping, points)? }),
            Err(why) => refusal(&why),
        };
        show::json_line(&answer);
    }
}

/// Whether the other end of a pipe is closed, or will be before long.
fn is_closed(pipe: &impl AsFd, within: Duration) -> bool {
    let mut looked = [PollFd::new(pipe, PollFlags::empty())];
    let within = Timespec::try_from(within).ok();
    // That it is closed is said unasked.
    poll(&mut looked, within.as_ref()).is_ok()
        && looked[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// Nobody wants to know.
fn unread() -> Error {
    Error::output("nobody reads the answers any more: standard output is closed")
        .hint("what was measured is kept: the same command goes on with it")
}

/// The last line: the best, and how to make it.
pub(super) fn last(out: &Path, request: &Request, found: &Found) -> Json {
    let config = best_config(out).display().to_string();
    json!({
        "best": found.point_json(found.outcome.best, request),
        "merge": format!("mergeforge merge {config} OUT{}", found.flags),
        "config": config,
    })
}

/// What is wrong with a question.
fn refusal(why: &Error) -> Json {
    json!({ "error": why.message, "hint": why.hint })
}

/// The lines of an input, blank ones left out, read by a thread of their own: whoever waits for them has to look for other things too.
/// Within: why one line is refused, by which the next ones are not affected.
fn lines(input: impl Read + Send + 'static) -> io::Result<Receiver<Result<Result<Vec<u8>>>>> {
    let (sender, lines) = sync_channel(1);
    Builder::new().spawn(move || {
        let mut input = BufReader::new(input);
        loop {
            let line = match next_line(&mut input) {
                Ok(None) => return,
                Ok(Some(Ok(line))) if line.trim_ascii().is_empty() => continue,
                Ok(Some(line)) => Ok(line),
                Err(cause) => Err(Error::input(format!("cannot read questions: {cause}"))),
            };
            let is_last = line.is_err();
            if sender.send(line).is_err() || is_last {
                return;
            }
        }
    })?;
    Ok(lines)
}

/// The next line, if there is one. Within: it is too long.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Result<Vec<u8>>>> {
    let mut line = Vec::new();
    if input.take(QUESTION_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() as u64 == QUESTION_BYTES_MAX && !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
        let message = format!("a line has more than {}", bytes(QUESTION_BYTES_MAX));
        return Ok(Some(Err(Error::config(message).hint("ask for fewer points at once"))));
    }
    Ok(Some(Ok(line)))
}

impl Question {
    fn read(line: &[u8]) -> Result<Self> {
        let refused = |why: String| Error::config(why).hint(FORMS);
        let json: Json = serde_json::from_slice(line)
            .map_err(|why| refused(format!("a line that is no JSON: {}", escaped(&why.to_string()))))?;
        let Json::Object(mut asked) = json else {
            return Err(refused("a line that is no object".into()));
        };
        let key = asked.keys().next().cloned().unwrap_or_default();
        match (asked.len(), &key[..], asked.remove(&key)) {
            (1, "point", Some(point)) => Ok(Self::Point(point)),
            (1, "points", Some(Json::Array(points))) => Ok(Self::Points(points)),
            (1, "points", _) => Err(refused("points is no list".into())),
            (1, "best", Some(Json::Bool(true))) => Ok(Self::Best),
            (1, "best", _) => Err(refused("best is not true".into())),
            (1, ..) => Err(refused(format!("{} is no question", cut_to(&escaped(&key), 60)))),
            (count, ..) => Err(refused(format!("a line with {count} keys"))),
        }
    }
}

impl Served<'_> {
    /// The first line: what may be asked for, and what is known already.
    fn greeting(&self, sweeping: &mut Sweeping<'_>) -> Result<Json> {
        let space = self.request.space.knobs.iter().map(|knob| match &knob.values {
            Values::Between(from, to) => {
                json!({ "name": knob.name, "kind": "range", "from": from, "to": to })
            }
            Values::Among(of) => {
                let values: Vec<Json> = (0..of.len()).map(|place| knob.json(place as f64)).collect();
                json!({ "name": knob.name, "kind": "choice", "values": values })
            }
        });
        let weights = &self.request.weights;
        let objectives = weights.iter().map(|(name, weight)| json!({ "name": name, "weight": weight }));
        let known = sweeping.recalled().iter().map(|point| self.request.space.json(point).into()).collect();
        let known = self.answers(sweeping, known)?;
        Ok(json!({
            "mergeforge": env!("CARGO_PKG_VERSION"),
            "space": space.collect::<Vec<_>>(),
            "objectives": objectives.collect::<Vec<_>>(),
            "direction": self.direction.name(),
            "try_tokens": self.tokens.map(|[part, _]| part),
            "tokens": self.tokens.map(|[_, all]| all),
            "known": known,
        }))
    }

    /// The predicted scores of points; none where nothing is predicted.
    pub(super) fn predicted(&self, points: &[Vec<f64>]) -> Vec<Option<f64>> {
        match self.predictions {
            Some(predictions) => predictions.scores(self.request, points),
            None => vec![None; points.len()],
        }
    }

    /// The answers to some points, each by itself.
    fn answers(&self, sweeping: &mut Sweeping<'_>, asked: Vec<Json>) -> Result<Vec<Json>> {
        let read = |point: &Json| match point {
            Json::Object(values) => self.request.space.point(values),
            _ => Err(Error::config("a point is no object").hint(FORMS)),
        };
        let read: Vec<Result<Vec<f64>>> = asked.iter().map(read).collect();
        let points: Vec<Vec<f64>> = read.iter().flatten().cloned().collect();
        let predicted = self.predicted(&points);
        let mut answers = sweeping.answer(&points, &predicted)?.into_iter().zip(predicted);
        let of = |(asked, point): (Json, Result<Vec<f64>>)| {
            let found = point.and_then(|point| {
                let (answer, predicted) = answers.next().expect("each is answered");
                Ok(self.answer(&point, &answer?, predicted))
            });
            found.unwrap_or_else(|why| {
                let mut refusal = refusal(&why);
                refusal["values"] = asked;
                refusal
            })
        };
        Ok(asked.into_iter().zip(read).map(of).collect())
    }

    fn answer(&self, point: &[f64], answer: &Answer, predicted: Option<f64>) -> Json {
        let Scores { score, losses, errors, spread } = &answer.scores;
        let sign = self.direction.sign();
        let named = |numbers: &[f64], sign: f64| -> Map<String, Json> {
            let named = self.request.weights.iter().zip(numbers);
            named.map(|((name, _), number)| (name.clone(), (sign * number).into())).collect()
        };
        json!({
            "values": self.request.space.json(point),
            "score": sign * score,
            "objectives": named(losses, sign),
            "standard_errors": named(errors, 1.0),
            "spread_over_seeds": spread,
            "predicted": predicted,
            "from_journal": answer.is_known,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_or_refused() {
        let read = |line: &str| Question::read(line.as_bytes());
        assert_eq!(read(r#"{"best": true}"#).unwrap(), Question::Best);
        assert_eq!(read(r#"{"point": {"a": 1}}"#).unwrap(), Question::Point(json!({ "a": 1 })));
        assert_eq!(read(r#"{"points": []}"#).unwrap(), Question::Points(Vec::new()));
        for (line, why) in [
            ("{\"point\": ", "no JSON"),
            ("[1]", "no object"),
            ("{}", "0 keys"),
            (r#"{"points": {}}"#, "points is no list"),
            (r#"{"best": true, "point": {}}"#, "2 keys"),
            (r#"{"ask": 1}"#, "ask is no question"),
            (r#"{"best": false}"#, "best is not true"),
        ] {
            let refused = read(line).unwrap_err();
            assert!(refused.message.contains(why), "{}", refused.message);
            assert!(refused.hint.unwrap().contains("\"points\""));
        }
        assert!(Question::read(b"\xff").is_err());
    }

    #[test]
    fn lines_that_are_too_long_are_refused_and_the_next_ones_read() {
        let mut text = vec![b'x'; QUESTION_BYTES_MAX as usize + 10];
        text.extend(b"\n\n{}\nlast");
        let lines = lines(io::Cursor::new(text)).unwrap();
        let next = || lines.recv().map(Result::unwrap);
        assert!(next().unwrap().unwrap_err().message.contains("a line has more than"));
        assert_eq!(next().unwrap().unwrap(), b"{}\n");
        assert_eq!(next().unwrap().unwrap(), b"last");
        assert!(next().is_err());
    }

    #[test]
    fn what_cannot_be_read_is_not_the_end_of_the_questions() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("it broke"))
            }
        }
        let lines = lines(io::Cursor::new(b"{}\n").chain(Broken)).unwrap();
        assert_eq!(lines.recv().unwrap().unwrap().unwrap(), b"{}\n");
        let why = lines.recv().unwrap().unwrap_err();
        assert_eq!(why.message, "cannot read questions: it broke");
        assert!(lines.recv().is_err());
    }
}
