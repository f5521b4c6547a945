//! Reads Python pickles as data. Only the opcodes of a file of named tensors are supported: containers, numbers, texts, and
//! the few constructors of PyTorch that represent a tensor. Nothing is imported or called; any other constructor is an
//! error that names it.
//!
//! Opcodes: `pickletools.py` of CPython. Constructors: `torch/_utils.py` and `torch/serialization.py` of PyTorch.

use std::collections::HashMap;
use std::rc::Rc;

/// A pickle's objects. Values refer to them by index, because an object can be filled after it was referred to.
pub(super) struct Pickle {
    objects: Vec<PickleObject>,
    root: PickleValue,
}

/// A value on the stack. Booleans and reals are not needed for tensors, so their values are dropped.
#[derive(Clone, Debug)]
pub(super) enum PickleValue {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    /// The name of a constructor: `module name`.
    Constructor(Rc<str>),
    /// An index into [`Pickle::objects`].
    Object(usize),
}

enum PickleObject {
    Dict(Vec<(PickleValue, PickleValue)>),
    List(Vec<PickleValue>),
    Tuple(Vec<PickleValue>),
    Storage(TensorStorage),
    Tensor(TensorRecord),
}

/// The memory of tensors: a file of the archive.
#[derive(Clone, Debug)]
pub(super) struct TensorStorage {
    /// The storage's type, such as `torch.HalfStorage`.
    pub kind: Rc<str>,
    /// Name of the file below `data/`.
    pub key: Rc<str>,
}

/// A tensor: a view of a storage. Offset and strides are in values.
#[derive(Clone, Debug)]
pub(super) struct TensorRecord {
    pub storage: TensorStorage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Why a pickle could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the pickle at byte {at}: {problem}")]
pub struct PickleError {
    /// Offset of the opcode.
    pub at: usize,
    #[source]
    pub problem: PickleProblem,
}

/// What is wrong with an opcode of a pickle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleProblem {
    #[error("it ends in the middle of a value")]
    Truncated,
    #[error("opcode {0:#04x} is not one that tensors need")]
    UnsupportedOpcode(u8),
    /// A constructor that could run code; it was not called.
    #[error("it constructs `{module}.{name}`, which is not part of named tensors; nothing was run")]
    ForeignConstructor { module: String, name: String },
    #[error("it calls `{0}` with arguments that are not understood")]
    UnknownCall(String),
    #[error("it recalls value {0}, which was not remembered")]
    UnknownMemo(u64),
    #[error("a whole number of {0} bytes; at most 8 are read")]
    LongInteger(usize),
    #[error("{found} where {expected} is expected")]
    UnexpectedValue { found: String, expected: &'static str },
    #[error("{0}")]
    Malformed(&'static str),
}

impl From<&'static str> for PickleProblem {
    fn from(problem: &'static str) -> Self {
        Self::Malformed(problem)
    }
}

impl Pickle {
    /// Reads a whole pickle. Memory is limited to a small multiple of its length, because an opcode creates at most one value.
    pub fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut machine = PickleMachine {
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            objects: Vec::new(),
        };

        loop {
            let at = machine.at;
            match machine.execute_next() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { objects: machine.objects, root }),
                Err(problem) => return Err(PickleError { at, problem }),
            }
        }
    }

    pub fn root(&self) -> &PickleValue {
        &self.root
    }

    /// The value of a key in a dictionary.
    pub fn get(&self, dict: &PickleValue, key: &str) -> Option<&PickleValue> {
        let entries = self.entries(dict)?;
        // A key that occurs twice has its last value, like in Python.
        entries.iter().rev().find(|(name, _)| matches!(name, PickleValue::Text(text) if **text == *key)).map(|(_, v)| v)
    }

    pub fn entries(&self, dict: &PickleValue) -> Option<&[(PickleValue, PickleValue)]> {
        match self.object(dict)? {
            PickleObject::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn tensor(&self, value: &PickleValue) -> Option<&TensorRecord> {
        match self.object(value)? {
            PickleObject::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    fn object(&self, value: &PickleValue) -> Option<&PickleObject> {
        match value {
            PickleValue::Object(index) => self.objects.get(*index),
            _ => None,
        }
    }
}

/// The stack machine that executes a pickle's opcodes.
struct PickleMachine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<PickleValue>,
    /// The height of the stack at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u64, PickleValue>,
    objects: Vec<PickleObject>,
}

type OpcodeResult<T> = Result<T, PickleProblem>;

impl PickleMachine<'_> {
    /// Executes one opcode. Returns the value of the whole pickle at its end.
    fn execute_next(&mut self) -> OpcodeResult<Option<PickleValue>> {
        let [opcode] = self.take_array()?;
        if opcode == b'.' {
            return self.pop().map(Some);
        }

        let is_known = self.execute_scalar(opcode)?
            || self.execute_container(opcode)?
            || self.execute_memo(opcode)?
            || self.execute_constructor(opcode)?;

        if is_known { Ok(None) } else { Err(PickleProblem::UnsupportedOpcode(opcode)) }
    }

    /// Executes an opcode for a number or a text; returns whether it is one.
    fn execute_scalar(&mut self, opcode: u8) -> OpcodeResult<bool> {
        match opcode {
            // PROTO and FRAME have no effect.
            0x80 => _ = self.take_array::<1>()?,
            0x95 => _ = self.take_array::<8>()?,

            b'N' => self.push(PickleValue::None),
            0x88 | 0x89 => self.push(PickleValue::Bool),
            b'J' => {
                let number = i32::from_le_bytes(self.take_array()?);
                self.push(PickleValue::Int(number.into()));
            }
            b'K' => {
                let [number] = self.take_array()?;
                self.push(PickleValue::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.take_array()?);
                self.push(PickleValue::Int(number.into()));
            }
            0x8a => {
                let number = self.take_long()?;
                self.push(PickleValue::Int(number));
            }
            b'G' => {
                _ = self.take_array::<8>()?;
                self.push(PickleValue::Float);
            }
            b'X' => {
                let length = u32::from_le_bytes(self.take_array()?);
                self.push_text(u64::from(length))?;
            }
            0x8c => {
                let [length] = self.take_array()?;
                self.push_text(u64::from(length))?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.take_array()?);
                self.push_text(length)?;
            }
            _ => return Ok(false),
        }

        Ok(true)
    }

    /// Executes an opcode for a list, a tuple or a dictionary; returns whether it is one.
    fn execute_container(&mut self, opcode: u8) -> OpcodeResult<bool> {
        match opcode {
            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push_object(PickleObject::Dict(Vec::new())),
            b']' => self.push_object(PickleObject::List(Vec::new())),
            b')' => self.push_object(PickleObject::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_object(PickleObject::Tuple(items));
            }
            0x85 => self.push_tuple(1)?,
            0x86 => self.push_tuple(2)?,
            0x87 => self.push_tuple(3)?,
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            _ => return Ok(false),
        }

        Ok(true)
    }

    /// Executes an opcode that writes or reads the memo; returns whether it is one.
    fn execute_memo(&mut self, opcode: u8) -> OpcodeResult<bool> {
        match opcode {
            b'q' => {
                let [index] = self.take_array()?;
                self.memoize(index.into())?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.memoize(index.into())?;
            }
            0x94 => self.memoize(self.memo.len() as u64)?,
            b'h' => {
                let [index] = self.take_array()?;
                self.push_memoized(index.into())?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.take_array()?);
                self.push_memoized(index.into())?;
            }
            _ => return Ok(false),
        }

        Ok(true)
    }

    /// Executes an opcode that names or calls a constructor; returns whether it is one.
    fn execute_constructor(&mut self, opcode: u8) -> OpcodeResult<bool> {
        match opcode {
            b'c' => {
                let (module, name) = (self.take_line()?, self.take_line()?);
                self.push_constructor(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.push_constructor(&module, &name)?;
            }
            b'Q' => self.push_storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Ok(false),
        }

        Ok(true)
    }

    fn take(&mut self, length: usize) -> OpcodeResult<&[u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(PickleProblem::Truncated)?;
        let taken = self.bytes.get(self.at..end).ok_or(PickleProblem::Truncated)?;
        self.at = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> OpcodeResult<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| PickleProblem::Truncated)
    }

    /// LONG1: a little-endian number of up to eight bytes.
    fn take_long(&mut self) -> OpcodeResult<i64> {
        let [length] = self.take_array()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return Err(PickleProblem::LongInteger(bytes.len()));
        }

        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        for (slot, byte) in all.iter_mut().zip(bytes) {
            *slot = *byte;
        }

        Ok(i64::from_le_bytes(all))
    }

    fn take_line(&mut self) -> OpcodeResult<String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let line = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| "a name that is not UTF-8")?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: PickleValue) {
        self.stack.push(value);
    }

    fn push_text(&mut self, length: u64) -> OpcodeResult<()> {
        let length = usize::try_from(length).map_err(|_| "a text longer than the file")?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text that is not UTF-8")?;
        let text = Rc::from(text);
        self.push(PickleValue::Text(text));
        Ok(())
    }

    fn push_object(&mut self, object: PickleObject) {
        self.objects.push(object);
        self.push(PickleValue::Object(self.objects.len() - 1));
    }

    fn pop(&mut self) -> OpcodeResult<PickleValue> {
        let lowest = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= lowest {
            return Err("it takes a value where there is none".into());
        }
        self.stack.pop().ok_or(PickleProblem::Malformed("it takes a value where there is none"))
    }

    fn pop_text(&mut self) -> OpcodeResult<Rc<str>> {
        match self.pop()? {
            PickleValue::Text(text) => Ok(text),
            other => Err(PickleProblem::UnexpectedValue { found: format!("{other:?}"), expected: "a text" }),
        }
    }

    fn pop_to_mark(&mut self) -> OpcodeResult<Vec<PickleValue>> {
        let mark = self.marks.pop().ok_or("it closes what was not opened")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn push_tuple(&mut self, length: usize) -> OpcodeResult<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push_object(PickleObject::Tuple(items));
        Ok(())
    }

    fn top_object(&mut self) -> OpcodeResult<&mut PickleObject> {
        let Some(PickleValue::Object(index)) = self.stack.last() else {
            return Err("it fills what is no container".into());
        };
        self.objects.get_mut(*index).ok_or(PickleProblem::Malformed("it fills what is no container"))
    }

    fn append(&mut self, items: Vec<PickleValue>) -> OpcodeResult<()> {
        match self.top_object()? {
            PickleObject::List(list) => list.extend(items),
            _ => return Err("it appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<PickleValue>) -> OpcodeResult<()> {
        let PickleObject::Dict(dict) = self.top_object()? else {
            return Err("it sets an item of what is no dictionary".into());
        };

        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            dict.push((key, items.next().ok_or("a key without a value")?));
        }

        Ok(())
    }

    fn memoize(&mut self, index: u64) -> OpcodeResult<()> {
        let value = self.stack.last().ok_or("it remembers a value where there is none")?.clone();
        self.memo.insert(index, value);
        Ok(())
    }

    fn push_memoized(&mut self, index: u64) -> OpcodeResult<()> {
        let value = self.memo.get(&index).ok_or(PickleProblem::UnknownMemo(index))?;
        let value = value.clone();
        self.push(value);
        Ok(())
    }

    fn push_constructor(&mut self, module: &str, name: &str) -> OpcodeResult<()> {
        let is_known = match (module, name) {
            ("collections", "OrderedDict") => true,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") => true,
            ("torch", name) => name.ends_with("Storage"),
            _ => false,
        };

        if !is_known {
            let (module, name) = (module.to_owned(), name.to_owned());
            return Err(PickleProblem::ForeignConstructor { module, name });
        }

        self.push(PickleValue::Constructor(format!("{module} {name}").into()));

        Ok(())
    }

    fn pop_tuple(&mut self) -> OpcodeResult<&[PickleValue]> {
        let value = self.pop()?;
        match value {
            PickleValue::Object(index) => match self.objects.get(index) {
                Some(PickleObject::Tuple(items)) => Ok(items),
                _ => Err("arguments that are no tuple".into()),
            },
            _ => Err("arguments that are no tuple".into()),
        }
    }

    /// A reference to a storage: `('storage', torch.HalfStorage, '0', 'cpu', 1234)`.
    fn push_storage(&mut self) -> OpcodeResult<()> {
        let storage = match self.pop_tuple()? {
            [
                PickleValue::Text(what),
                PickleValue::Constructor(kind),
                PickleValue::Text(key),
                _,
                PickleValue::Int(_),
            ] if **what == *"storage" && kind.starts_with("torch ") => {
                TensorStorage { kind: kind.trim_start_matches("torch ").into(), key: key.clone() }
            }
            _ => return Err("a reference that is not to the storage of a tensor".into()),
        };

        self.push_object(PickleObject::Storage(storage));
        Ok(())
    }

    fn reduce(&mut self) -> OpcodeResult<()> {
        let arguments = self.pop_tuple()?.to_vec();
        let PickleValue::Constructor(constructor) = self.pop()? else {
            return Err("it calls what is no constructor".into());
        };

        match &*constructor {
            "collections OrderedDict" if arguments.is_empty() => self.push_object(PickleObject::Dict(Vec::new())),
            "torch._utils _rebuild_tensor_v2" => {
                let tensor = self.tensor(&arguments)?;
                self.push_object(PickleObject::Tensor(tensor));
            }
            // A parameter is represented by its data, the first argument.
            "torch._utils _rebuild_parameter" => {
                let data = arguments.into_iter().next().ok_or("a parameter without data")?;
                self.push(data);
            }
            other => return Err(PickleProblem::UnknownCall(other.to_owned())),
        }

        Ok(())
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&self, arguments: &[PickleValue]) -> OpcodeResult<TensorRecord> {
        let [storage, PickleValue::Int(offset), shape, strides, ..] = arguments else {
            return Err("a tensor without storage, offset, shape and strides".into());
        };

        let storage = match storage {
            PickleValue::Object(index) => match self.objects.get(*index) {
                Some(PickleObject::Storage(storage)) => storage.clone(),
                _ => return Err("a tensor without a storage".into()),
            },
            _ => return Err("a tensor without a storage".into()),
        };

        let offset = usize::try_from(*offset).map_err(|_| "a tensor with a negative offset")?;

        Ok(TensorRecord { storage, offset, shape: self.sizes(shape)?, strides: self.sizes(strides)? })
    }

    fn sizes(&self, value: &PickleValue) -> OpcodeResult<Vec<usize>> {
        let items = match value {
            PickleValue::Object(index) => match self.objects.get(*index) {
                Some(PickleObject::Tuple(items) | PickleObject::List(items)) => items,
                _ => return Err("a shape that is no tuple".into()),
            },
            _ => return Err("a shape that is no tuple".into()),
        };

        items
            .iter()
            .map(|item| match item {
                PickleValue::Int(size) => usize::try_from(*size)
                    .map_err(|_| PickleProblem::UnexpectedValue { found: size.to_string(), expected: "a size" }),
                other => Err(PickleProblem::UnexpectedValue { found: format!("{other:?}"), expected: "a size" }),
            })
            .collect()
    }

    /// BUILD: sets attributes of an object; those of a dictionary (`_metadata` of a state) are not needed for tensors.
    fn build(&mut self) -> OpcodeResult<()> {
        self.pop()?;

        match self.top_object()? {
            PickleObject::Dict(_) => Ok(()),
            _ => Err("it sets attributes of what is no dictionary".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(bytes: &[u8]) -> (usize, PickleProblem) {
        let error = Pickle::read(bytes).map(drop).unwrap_err();
        (error.at, error.problem)
    }

    #[test]
    fn each_kind_of_problem_is_told_apart_and_has_the_offset_of_its_opcode() {
        assert_eq!(problem(b""), (0, PickleProblem::Truncated));
        assert_eq!(problem(b"NJ\x01\x02"), (1, PickleProblem::Truncated));
        assert_eq!(problem(b"N\xff."), (1, PickleProblem::UnsupportedOpcode(0xff)));
        assert_eq!(problem(b"h\x07."), (0, PickleProblem::UnknownMemo(7)));
        assert_eq!(problem(b"\x8a\x09123456789."), (0, PickleProblem::LongInteger(9)));

        let (module, name) = ("posix".to_owned(), "system".to_owned());
        assert_eq!(problem(b"cposix\nsystem\n."), (0, PickleProblem::ForeignConstructor { module, name }));
    }
}
