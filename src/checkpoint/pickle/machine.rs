//! The machine that a pickle is a program for, without anything that could do harm.
//!
//! (Python's `pickletools` documents the opcodes.) A pickle puts values on a stack, keeps some of them in a memo, and makes
//! containers of them; it may also name functions and have them called. Here a name must be one of [`super::globals`], a call
//! is what that name means, and whatever it would make otherwise is a value that nobody looks into. What is kept is counted:
//! values refer to each other by number, so that a pickle that names one list a billion times is as large as it looks.

use std::collections::HashMap;

use super::Refusal;
use super::globals::{self, Global};
use crate::dtype::Dtype;
use crate::limits::{PICKLE_STACK_MAX, PICKLE_VALUES_MAX};
use crate::text::quoted;

type Result<T> = std::result::Result<T, Refusal>;

/// A value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Nothing, a truth value, a float, bytes: what no tensor is made of.
    Other,
    Int(i64),
    Text(Text),
    Global(Global),
    /// Something made, by its number.
    Made(u32),
}

/// A text, as the place of its UTF-8 in the pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    start: u32,
    len: u32,
}

/// What is made.
#[derive(Debug)]
enum Made {
    /// Elements, by their place among all of them.
    Tuple(Text),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    Storage(Storage),
    Tensor(Tensor),
    Inert,
}

/// A storage: which file of the archive, and how many elements of which type; `None`: bytes.
#[derive(Debug, Clone, Copy)]
pub struct Storage {
    pub key: Text,
    pub dtype: Option<Dtype>,
    pub elements: u64,
}

/// A tensor: a view of a storage. Size and stride are tuples of integers, if the pickle does not lie.
#[derive(Debug, Clone, Copy)]
pub struct Tensor {
    pub storage: u32,
    pub dtype: Dtype,
    pub offset: u64,
    pub size: Value,
    pub stride: Value,
}

/// What a pickle has made.
#[derive(Debug)]
pub struct Pickled<'a> {
    pickle: &'a [u8],
    made: Vec<Made>,
    elements: Vec<Value>,
    /// What it is all for.
    pub root: Value,
}

impl Pickled<'_> {
    fn made(&self, value: Value) -> Option<&Made> {
        if let Value::Made(number) = value { Some(&self.made[number as usize]) } else { None }
    }

    /// A text, if the value is one.
    pub fn text(&self, value: Value) -> Option<&str> {
        let Value::Text(text) = value else { return None };
        Some(self.text_at(text))
    }

    /// A text of this pickle.
    pub fn text_at(&self, text: Text) -> &str {
        let bytes = &self.pickle[text.start as usize..][..text.len as usize];
        std::str::from_utf8(bytes).expect("texts were checked when they were read")
    }

    /// The entries of a dict, if the value is one.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        if let Some(Made::Dict(entries)) = self.made(value) { Some(entries) } else { None }
    }

    /// A tensor, if the value is one.
    pub fn tensor(&self, value: Value) -> Option<Tensor> {
        if let Some(Made::Tensor(tensor)) = self.made(value) { Some(*tensor) } else { None }
    }

    /// The storage of a tensor.
    pub fn storage(&self, tensor: &Tensor) -> Storage {
        let Some(Made::Storage(storage)) = self.made(Value::Made(tensor.storage)) else {
            unreachable!("a tensor is made of a storage")
        };
        *storage
    }

    /// The elements of a tuple or a list.
    pub fn elements(&self, value: Value) -> Option<&[Value]> {
        match self.made(value)? {
            Made::Tuple(Text { start, len }) => Some(&self.elements[*start as usize..][..*len as usize]),
            Made::List(elements) => Some(elements),
            _ => None,
        }
    }
}

/// Reads a pickle to its end.
///
/// # Errors
/// It is damaged, goes beyond the limits, or wants something that is not among the known names.
pub fn read(pickle: &[u8]) -> Result<Pickled<'_>> {
    let made = Pickled { pickle, made: Vec::new(), elements: Vec::new(), root: Value::Other };
    let mut machine =
        Machine { at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), kept: 0, pickled: made };
    while machine.step()? {}
    let root = machine.pop()?;
    if machine.at != pickle.len() {
        return Err(Refusal::damaged("its pickle has something behind its end".into()));
    }
    Ok(Pickled { root, ..machine.pickled })
}

struct Machine<'a> {
    /// The next byte of the pickle.
    at: usize,
    stack: Vec<Value>,
    marks: Vec<u32>,
    memo: HashMap<u32, Value>,
    /// What is kept, in values.
    kept: usize,
    pickled: Pickled<'a>,
}

/// What a call is made with.
#[derive(Clone, Copy)]
struct Call {
    function: Value,
    arguments: Value,
}

impl<'a> Machine<'a> {
    /// Does what the next opcode says; false where that is to stop.
    fn step(&mut self) -> Result<bool> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return Ok(false),
            // What says nothing of values: protocol, frame.
            0x80 => self.protocol()?,
            0x95 => self.take(8).map(drop)?,
            // Values by themselves: None, true, false, floats, bytes, integers, texts.
            b'N' | 0x88 | 0x89 => self.push(Value::Other)?,
            b'G' => self.other(8)?,
            b'F' => self.line().and_then(|_| self.push(Value::Other))?,
            b'C' => self.counted(1).and_then(|_| self.push(Value::Other))?,
            b'B' => self.counted(4).and_then(|_| self.push(Value::Other))?,
            0x8e => self.counted(8).and_then(|_| self.push(Value::Other))?,
            0x96 => self.counted(8).and_then(|_| self.make(Made::Inert, 0))?,
            b'J' => self.number(4, true)?,
            b'K' => self.number(1, false)?,
            b'M' => self.number(2, false)?,
            b'I' | b'L' => self.written_number()?,
            0x8a => self.counted(1).and_then(|number| self.long(number))?,
            0x8b => self.counted(4).and_then(|number| self.long(number))?,
            b'U' | 0x8c => self.text(1)?,
            b'T' | b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'V' => self.line().and_then(|line| self.push_text(line))?,
            b'S' => self.written_text()?,
            // The stack and the memo.
            b'(' => self.mark()?,
            b'0' => self.drop_one()?,
            b'1' => self.above_mark().map(drop)?,
            b'2' => self.top().and_then(|top| self.push(top))?,
            b'q' => self.unsigned(1).and_then(|place| self.put(place))?,
            b'r' => self.unsigned(4).and_then(|place| self.put(place))?,
            b'p' => self.written_place().and_then(|place| self.put(place))?,
            0x94 => self.put(self.memo.len() as u64)?,
            b'h' => self.unsigned(1).and_then(|place| self.get(place))?,
            b'j' => self.unsigned(4).and_then(|place| self.get(place))?,
            b'g' => self.written_place().and_then(|place| self.get(place))?,
            // Containers.
            b')' => self.tuple(Vec::new())?,
            0x85..=0x87 => self.last(usize::from(opcode) - 0x84).and_then(|elements| self.tuple(elements))?,
            b't' => self.above_mark().and_then(|elements| self.tuple(elements))?,
            b']' => self.make(Made::List(Vec::new()), 0)?,
            b'l' => self.above_mark().and_then(|elements| self.list(elements))?,
            b'}' => self.make(Made::Dict(Vec::new()), 0)?,
            b'd' => self.above_mark().and_then(|entries| self.new_dict(&entries))?,
            0x8f => self.make(Made::Inert, 0)?,
            0x91 => self.above_mark().and_then(|_| self.make(Made::Inert, 0))?,
            b'a' => self.last(1).and_then(|elements| self.append(&elements))?,
            b'e' | 0x90 => self.above_mark().and_then(|elements| self.append(&elements))?,
            b's' => self.last(2).and_then(|entry| self.set(&entry))?,
            b'u' => self.above_mark().and_then(|entries| self.set(&entries))?,
            // Names, and what would be run.
            b'c' => self.global().and_then(|global| self.push(global))?,
            0x93 => self.global_on_stack()?,
            b'R' | 0x81 => self.reduce()?,
            0x92 => self.drop_one().and_then(|()| self.reduce())?,
            b'i' => self.global().and_then(|function| self.call_above_mark(Some(function)))?,
            b'o' => self.call_above_mark(None)?,
            b'b' => self.build()?,
            b'Q' => self.storage()?,
            _ => return Err(unknown(opcode)),
        }
        Ok(true)
    }

    // Bytes of the pickle.

    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.pickled.pickle.len());
        let end = end.ok_or_else(|| Refusal::damaged("its pickle is cut short".into()))?;
        let taken = &self.pickled.pickle[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// An unsigned integer of so many bytes.
    fn unsigned(&mut self, bytes: usize) -> Result<u64> {
        let taken = self.take(bytes)?;
        Ok(taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Bytes behind their count, which has so many bytes itself.
    fn counted(&mut self, count_bytes: usize) -> Result<&'a [u8]> {
        let count = self.unsigned(count_bytes)?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<&'a [u8]> {
        let rest = &self.pickled.pickle[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = self.take(end)?;
        self.take(1)?;
        Ok(line)
    }

    fn protocol(&mut self) -> Result<()> {
        match self.take(1)? {
            [0..=5] => Ok(()),
            [other, ..] => Err(Refusal::save_again(format!(
                "its pickle has protocol {other}, and 5 is the last that is read"
            ))),
            [] => unreachable!("a byte was taken"),
        }
    }

    // The stack and the memo.

    fn push(&mut self, value: Value) -> Result<()> {
        if self.stack.len() == PICKLE_STACK_MAX {
            return Err(Refusal::damaged(format!(
                "its pickle has more than {PICKLE_STACK_MAX} values in hand"
            )));
        }
        self.stack.push(value);
        Ok(())
    }

    /// Where the values above the last mark begin.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |mark| *mark as usize)
    }

    fn top(&self) -> Result<Value> {
        let top = self.stack[self.floor()..].last();
        top.copied().ok_or_else(|| Refusal::damaged("its pickle takes what is not there".into()))
    }

    fn pop(&mut self) -> Result<Value> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// The topmost values, in the order in which they were put there.
    fn last(&mut self, count: usize) -> Result<Vec<Value>> {
        let mut last = (0..count).map(|_| self.pop()).collect::<Result<Vec<Value>>>()?;
        last.reverse();
        Ok(last)
    }

    fn mark(&mut self) -> Result<()> {
        if self.marks.len() == PICKLE_STACK_MAX {
            return Err(Refusal::damaged(format!(
                "its pickle goes more than {PICKLE_STACK_MAX} levels deep"
            )));
        }
        self.marks.push(self.stack.len() as u32);
        Ok(())
    }

    /// What was put there since the last mark, which goes as well.
    fn above_mark(&mut self) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or_else(|| Refusal::damaged("its pickle misses a mark".into()))?;
        Ok(self.stack.split_off(mark as usize))
    }

    /// Python's POP: a value, or a mark where nothing is above it.
    fn drop_one(&mut self) -> Result<()> {
        if self.stack.len() == self.floor() && self.marks.pop().is_some() {
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn put(&mut self, place: u64) -> Result<()> {
        let top = self.top()?;
        if self.memo.insert(place as u32, top).is_none() {
            // With the room that a table leaves.
            self.keep(3)?;
        }
        Ok(())
    }

    fn get(&mut self, place: u64) -> Result<()> {
        let value = u32::try_from(place).ok().and_then(|place| self.memo.get(&place));
        let value =
            value.ok_or_else(|| Refusal::damaged("its pickle remembers what it never kept".into()))?;
        self.push(*value)
    }

    fn written_place(&mut self) -> Result<u64> {
        let place = std::str::from_utf8(self.line()?).ok().and_then(|line| line.parse::<u32>().ok());
        place
            .map(u64::from)
            .ok_or_else(|| Refusal::damaged("its pickle keeps something under no number".into()))
    }

    // Values.

    fn other(&mut self, bytes: usize) -> Result<()> {
        self.take(bytes)?;
        self.push(Value::Other)
    }

    fn number(&mut self, bytes: usize, signed: bool) -> Result<()> {
        let number = self.unsigned(bytes)?;
        self.push(Value::Int(if signed { i64::from(number as u32 as i32) } else { number as i64 }))
    }

    fn written_number(&mut self) -> Result<()> {
        let line = std::str::from_utf8(self.line()?).unwrap_or_default();
        let number = line.trim_end_matches('L').parse();
        self.push(number.map_or(Value::Other, Value::Int))
    }

    /// An integer in two's complement; none that counts something needs more than 8 bytes.
    fn long(&mut self, number: &[u8]) -> Result<()> {
        let Some(last) = number.last() else { return self.push(Value::Int(0)) };
        if number.len() > 8 {
            return self.push(Value::Other);
        }
        let mut bytes = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
        bytes[..number.len()].copy_from_slice(number);
        self.push(Value::Int(i64::from_le_bytes(bytes)))
    }

    fn text(&mut self, count_bytes: usize) -> Result<()> {
        let text = self.counted(count_bytes)?;
        self.push_text(text)
    }

    /// A text that has just been taken. One that is no UTF-8 (Python 2 wrote bytes so) is nothing that a tensor is made of.
    fn push_text(&mut self, text: &[u8]) -> Result<()> {
        if std::str::from_utf8(text).is_err() {
            return self.push(Value::Other);
        }
        let start = text.as_ptr() as usize - self.pickled.pickle.as_ptr() as usize;
        self.push(Value::Text(Text { start: start as u32, len: text.len() as u32 }))
    }

    /// A text in quotes, as Python's `repr` writes it; with escapes it is no name that anybody looks for.
    fn written_text(&mut self) -> Result<()> {
        let line = self.line()?;
        match line {
            [b'\'' | b'"', text @ .., b'\'' | b'"'] if !text.contains(&b'\\') => self.push_text(text),
            _ => self.push(Value::Other),
        }
    }

    // What is made, and how much of it.

    fn keep(&mut self, values: usize) -> Result<()> {
        self.kept += values;
        if self.kept > PICKLE_VALUES_MAX {
            return Err(Refusal::damaged(format!("its pickle keeps more than {PICKLE_VALUES_MAX} values")));
        }
        Ok(())
    }

    /// Puts something on the stack that is made, and has so many values of its own.
    fn make(&mut self, made: Made, values: usize) -> Result<()> {
        self.keep(const { size_of::<Made>().div_ceil(size_of::<Value>()) } + values)?;
        self.pickled.made.push(made);
        self.push(Value::Made(self.pickled.made.len() as u32 - 1))
    }

    fn tuple(&mut self, elements: Vec<Value>) -> Result<()> {
        let place = Text { start: self.pickled.elements.len() as u32, len: elements.len() as u32 };
        self.keep(elements.len())?;
        self.pickled.elements.extend(elements);
        self.make(Made::Tuple(place), 0)
    }

    fn list(&mut self, elements: Vec<Value>) -> Result<()> {
        let count = elements.len();
        self.make(Made::List(elements), count)
    }

    fn new_dict(&mut self, entries: &[Value]) -> Result<()> {
        self.make(Made::Dict(Vec::new()), 0)?;
        self.set(entries)
    }

    /// What the topmost value refers to.
    fn made_on_top(&mut self) -> Result<&mut Made> {
        match self.top()? {
            Value::Made(number) => Ok(&mut self.pickled.made[number as usize]),
            _ => Err(Refusal::damaged("its pickle fills what is no container".into())),
        }
    }

    fn append(&mut self, more: &[Value]) -> Result<()> {
        // With the room that a growing list leaves.
        self.keep(2 * more.len())?;
        match self.made_on_top()? {
            Made::List(elements) => elements.extend_from_slice(more),
            Made::Inert => {}
            _ => return Err(Refusal::damaged("its pickle appends to what is no list".into())),
        }
        Ok(())
    }

    fn set(&mut self, keys_and_values: &[Value]) -> Result<()> {
        self.keep(2 * keys_and_values.len())?;
        let (entries, []) = keys_and_values.as_chunks() else {
            return Err(Refusal::damaged("its pickle has a key without a value".into()));
        };
        match self.made_on_top()? {
            Made::Dict(dict) => dict.extend(entries.iter().map(|[key, value]| (*key, *value))),
            Made::Inert => {}
            _ => return Err(Refusal::damaged("its pickle sets a key of what is no dict".into())),
        }
        Ok(())
    }

    // Names and calls.

    /// What two lines name.
    fn global(&mut self) -> Result<Value> {
        let (module, name) = (self.line()?, self.line()?);
        meaning(module, name)
    }

    /// What two texts on the stack name.
    fn global_on_stack(&mut self) -> Result<()> {
        let names = self.last(2)?;
        let text = |value: &Value| self.pickled.text(*value);
        let (Some(module), Some(name)) = (text(&names[0]), text(&names[1])) else {
            return Err(Refusal::harmful("names a function by what is no text"));
        };
        let global = meaning(module.as_bytes(), name.as_bytes())?;
        self.push(global)
    }

    fn reduce(&mut self) -> Result<()> {
        let call = self.last(2)?;
        self.call(Call { function: call[0], arguments: call[1] })
    }

    /// The older way to call: function and arguments above a mark, or the arguments alone.
    fn call_above_mark(&mut self, function: Option<Value>) -> Result<()> {
        let mut arguments = self.above_mark()?;
        let function = match function {
            Some(function) => function,
            None if arguments.is_empty() => return Err(Refusal::damaged("its pickle calls nothing".into())),
            None => arguments.remove(0),
        };
        self.tuple(arguments)?;
        let arguments = self.pop()?;
        self.call(Call { function, arguments })
    }

    fn call(&mut self, Call { function, arguments }: Call) -> Result<()> {
        let Value::Global(function) = function else {
            return Err(Refusal::harmful("calls what is no function"));
        };
        let Some(given) = self.pickled.elements(arguments) else {
            return Err(Refusal::damaged("its pickle calls a function with no list of arguments".into()));
        };
        match (function, given) {
            (Global::Dict, []) => self.make(Made::Dict(Vec::new()), 0),
            (Global::Dict, [of]) => self.dict_of(*of),
            (Global::Size, [size]) if self.pickled.elements(*size).is_some() => self.push(*size),
            (Global::Parameter, [of, ..]) => self.push(*of),
            (Global::OfType, [function, _, arguments, ..]) => {
                let call = Call { function: *function, arguments: *arguments };
                // One level: a function of a type is that of a tensor.
                if call.function == Value::Global(Global::OfType) {
                    return Err(Refusal::harmful("makes a tensor of nothing"));
                }
                self.call(call)
            }
            (Global::Tensor, [storage, offset, size, stride, ..]) => {
                self.tensor(*storage, *offset, [*size, *stride], None)
            }
            (
                Global::TypedTensor,
                [storage, offset, size, stride, _, _, Value::Global(Global::Dtype(dtype)), ..],
            ) => self.tensor(*storage, *offset, [*size, *stride], Some(*dtype)),
            (Global::Inert, _) => self.make(Made::Inert, 0),
            _ => Err(Refusal::damaged("its pickle makes something of the wrong parts".into())),
        }
    }

    /// A dict of pairs, or of another dict.
    fn dict_of(&mut self, of: Value) -> Result<()> {
        let dict = self.pickled.dict(of).map(<[_]>::len);
        let count = dict.or_else(|| self.pickled.elements(of).map(<[_]>::len)).unwrap_or(0);
        // First, since it is copied.
        self.keep(2 * count)?;
        if let Some(entries) = self.pickled.dict(of) {
            let entries = entries.to_vec();
            return self.make(Made::Dict(entries), 0);
        }
        let pair = |pair: &Value| match self.pickled.elements(*pair) {
            Some([key, value]) => Some((*key, *value)),
            _ => None,
        };
        let entries =
            self.pickled.elements(of).and_then(|pairs| pairs.iter().map(pair).collect::<Option<Vec<_>>>());
        let entries =
            entries.ok_or_else(|| Refusal::damaged("its pickle makes a dict of no pairs".into()))?;
        self.make(Made::Dict(entries), 0)
    }

    /// A tensor of a type of its own, or of its storage's.
    fn tensor(
        &mut self,
        storage: Value,
        offset: Value,
        [size, stride]: [Value; 2],
        dtype: Option<Dtype>,
    ) -> Result<()> {
        let wrong = || Refusal::damaged("its pickle makes a tensor of the wrong parts".into());
        let (Value::Made(number), Value::Int(offset)) = (storage, offset) else { return Err(wrong()) };
        let Some(Made::Storage(of)) = self.pickled.made(storage) else { return Err(wrong()) };
        let dtype = dtype.or(of.dtype).ok_or_else(wrong)?;
        let offset = u64::try_from(offset).map_err(|_| wrong())?;
        self.make(Made::Tensor(Tensor { storage: number, dtype, offset, size, stride }), 0)
    }

    /// What is set of something that was made: attributes that no tensor has.
    fn build(&mut self) -> Result<()> {
        self.pop()?;
        match self.made_on_top()? {
            Made::Dict(_) | Made::Inert => Ok(()),
            _ => Err(Refusal::harmful("sets attributes of what has none")),
        }
    }

    /// A persistent id: torch's name for a storage, `("storage", type, key, device, elements)`.
    fn storage(&mut self) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.pickled.elements(id) {
            Some(
                [kind, Value::Global(Global::Storage(dtype)), Value::Text(key), _, Value::Int(elements), ..],
            ) if self.pickled.text(*kind) == Some("storage") => {
                u64::try_from(*elements).ok().map(|elements| Storage { key: *key, dtype: *dtype, elements })
            }
            _ => None,
        };
        let what = "refers to something outside of it that is no storage of a tensor";
        let storage = storage.ok_or_else(|| Refusal::harmful(what))?;
        self.make(Made::Storage(storage), 0)
    }
}

/// The meaning of a name, or the refusal of one that has none here.
fn meaning(module: &[u8], name: &[u8]) -> Result<Value> {
    globals::find(module, name).map(Value::Global).ok_or_else(|| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Refusal::harmful(&format!("names {}", quoted(&format!("{}.{}", text(module), text(name)))))
    })
}

/// What an opcode is that no tensor needs.
fn unknown(opcode: u8) -> Refusal {
    match opcode {
        0x82..=0x84 => Refusal::harmful("names a function by a number of Python's extension registry"),
        b'P' => Refusal::harmful("refers to something outside of it that is no storage of a tensor"),
        0x97 | 0x98 => Refusal::save_again("its pickle has buffers outside of it".into()),
        _ => Refusal::damaged(format!("its pickle has the opcode {opcode:#04x}, which there is not")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(pickle: &[u8]) -> String {
        read(pickle).expect_err("it is refused").what
    }

    #[test]
    fn values_are_small() {
        assert_eq!((size_of::<Value>(), size_of::<Made>()), (16, 48));
    }

    #[test]
    fn containers_nest_and_values_come_back_from_the_memo() {
        // {"a": (1, -2, 300), "b": [the same tuple]}
        let pickle = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01J\xfe\xff\xff\xffM\x2c\x01\x87q\x01X\x01\x00\x00\x00b]h\x01au.";
        let pickled = read(pickle).unwrap();
        let entries = pickled.dict(pickled.root).unwrap();
        let keys: Vec<_> = entries.iter().map(|(key, _)| pickled.text(*key).unwrap()).collect();
        assert_eq!(keys, ["a", "b"]);
        let tuple = pickled.elements(entries[0].1).unwrap();
        assert_eq!(tuple, [Value::Int(1), Value::Int(-2), Value::Int(300)]);
        assert_eq!(pickled.elements(entries[1].1).unwrap(), [entries[0].1]);
    }

    #[test]
    fn integers_have_their_signs() {
        let pickle = b"(\x8a\x01\x80\x8a\x02\x00\x80\x8a\x00\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01I-7\nL12L\nI01\nt.";
        let pickled = read(pickle).unwrap();
        let expected = [-128, -32768, 0].map(Value::Int).into_iter();
        let expected = expected.chain([Value::Other]).chain([-7, 12, 1].map(Value::Int));
        assert_eq!(pickled.elements(pickled.root).unwrap(), expected.collect::<Vec<_>>());
    }

    #[test]
    fn the_stack_has_a_floor_at_each_mark() {
        assert_eq!(read(b"K\x01(0.").unwrap().root, Value::Int(1), "a mark is taken like a value");
        assert!(refused(b"(.").contains("takes what is not there"));
        assert!(refused(b"K\x01(\x85.").contains("takes what is not there"));
        assert!(refused(b"t.").contains("misses a mark"));
        assert!(refused(b".").contains("takes what is not there"));
        assert!(refused(b"h\x05.").contains("remembers"));
        assert!(refused(b"K\x01K").contains("cut short"));
        assert!(refused(b"N.N").contains("behind its end"));
        assert!(refused(b"}(Nu.").contains("without a value"));
        assert!(refused(b"\x80\x06N.").contains("protocol 6"));
        assert!(refused(b"\xffN.").contains("0xff"));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut flood = vec![b'N'; PICKLE_STACK_MAX + 1];
        flood.push(b'.');
        assert!(refused(&flood).contains("values in hand"));
        assert!(refused(&vec![b'('; PICKLE_STACK_MAX + 1]).contains("levels deep"));
        for (what, one) in [("lists", &b"]0"[..]), ("tuples", b")0"), ("dicts", b"}0"), ("sets", b"\x8f0")] {
            let refusal = refused(&one.repeat(PICKLE_VALUES_MAX));
            assert!(refusal.contains("keeps more than"), "{what}: {refusal}");
        }
        let list: Vec<u8> = [&b"]"[..], &b"Na".repeat(PICKLE_VALUES_MAX)].concat();
        assert!(refused(&list).contains("keeps more than"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(pickle in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&pickle);
        }

        /// Opcodes of all kinds, with short arguments that often fit.
        #[test]
        fn noisy_programs_never_panic(pickle in prop::collection::vec(prop::sample::select(
            b"N)]}(0123KJMXUTVS\x8a\x8c\x85\x86\x87tldaesu\x90\x91\x8f\x94qhcR\x81\x92iobQ\x93\x00\x01\x02\n'a.".to_vec()
        ), 0..200)) {
            let _ = read(&pickle);
        }
    }
}
