//! Python pickles, read as data. Only what a file of named tensors needs is understood: containers, numbers, texts,
//! and the few constructors of PyTorch that stand for a tensor. Nothing is imported and nothing is called; every other
//! constructor is an error that names it.
//!
//! Opcodes: `pickletools.py` of CPython. Constructors: `torch/_utils.py` and `torch/serialization.py` of PyTorch.

use std::collections::HashMap;
use std::rc::Rc;

/// Objects that a pickle refers to by their index, so that an object may be filled after it was referred to.
pub(super) struct Pickle {
    objects: Vec<Object>,
    root: Value,
}

/// A value on the stack. What a boolean or a real says is of no use for tensors.
#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    Float,
    Text(Rc<str>),
    /// The name of a constructor, `module name`.
    Constructor(Rc<str>),
    /// Index into [`Pickle::objects`].
    Object(usize),
}

enum Object {
    Dict(Vec<(Value, Value)>),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Storage(Storage),
    Tensor(TensorRecord),
}

/// The memory that tensors are views of: a file of the archive.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    /// `torch.HalfStorage` and the like.
    pub kind: Rc<str>,
    /// Name of the file below `data/`.
    pub key: Rc<str>,
}

/// A tensor: a view of a storage. Offset and strides count values.
#[derive(Clone, Debug)]
pub(super) struct TensorRecord {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// Why a pickle is not understood: the offset of the opcode, and what is wrong there.
#[derive(Debug, thiserror::Error)]
#[error("the pickle at byte {at}: {problem}")]
pub(super) struct PickleError {
    at: usize,
    problem: String,
}

impl Pickle {
    /// Reads a whole pickle. Memory is bounded by a small multiple of its length: an opcode makes one value at most.
    pub fn read(bytes: &[u8]) -> Result<Self, PickleError> {
        let mut machine =
            Machine { bytes, at: 0, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), objects: Vec::new() };

        loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => return Ok(Self { objects: machine.objects, root }),
                Err(problem) => return Err(PickleError { at, problem }),
            }
        }
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    /// The value of a key of a dictionary.
    pub fn get(&self, dict: &Value, key: &str) -> Option<&Value> {
        let entries = self.entries(dict)?;
        // A key that stands twice has its last value, as in Python.
        entries.iter().rev().find(|(name, _)| matches!(name, Value::Text(text) if **text == *key)).map(|(_, v)| v)
    }

    pub fn entries(&self, dict: &Value) -> Option<&[(Value, Value)]> {
        match self.object(dict)? {
            Object::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    pub fn tensor(&self, value: &Value) -> Option<&TensorRecord> {
        match self.object(value)? {
            Object::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    fn object(&self, value: &Value) -> Option<&Object> {
        match value {
            Value::Object(index) => self.objects.get(*index),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    objects: Vec<Object>,
}

type Step<T> = Result<T, String>;

impl Machine<'_> {
    /// Carries out one opcode; the value of the whole pickle at its end.
    fn step(&mut self) -> Step<Option<Value>> {
        let [opcode] = self.take_array()?;

        match opcode {
            // PROTO, FRAME: nothing follows from them.
            0x80 => _ = self.take_array::<1>()?,
            0x95 => _ = self.take_array::<8>()?,
            b'.' => return self.pop().map(Some),

            b'N' => self.push(Value::None),
            0x88 | 0x89 => self.push(Value::Bool),
            b'J' => {
                let number = i32::from_le_bytes(self.take_array()?);
                self.push(Value::Int(number.into()));
            }
            b'K' => {
                let [number] = self.take_array()?;
                self.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.take_array()?);
                self.push(Value::Int(number.into()));
            }
            0x8a => {
                let number = self.long()?;
                self.push(Value::Int(number));
            }
            b'G' => {
                _ = self.take_array::<8>()?;
                self.push(Value::Float);
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

            b'(' => self.marks.push(self.stack.len()),
            b'}' => self.push_object(Object::Dict(Vec::new())),
            b']' => self.push_object(Object::List(Vec::new())),
            b')' => self.push_object(Object::Tuple(Vec::new())),
            b't' => {
                let items = self.pop_to_mark()?;
                self.push_object(Object::Tuple(items));
            }
            0x85 => self.tuple_of(1)?,
            0x86 => self.tuple_of(2)?,
            0x87 => self.tuple_of(3)?,
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

            b'q' => {
                let [slot] = self.take_array()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take_array()?);
                self.remember(slot.into())?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'h' => {
                let [slot] = self.take_array()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take_array()?);
                self.recall(slot.into())?;
            }

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.constructor(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.constructor(&module, &name)?;
            }
            b'Q' => self.persistent()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            other => return Err(format!("opcode {other:#04x} is not one that tensors need")),
        }

        Ok(None)
    }

    fn take(&mut self, length: usize) -> Step<&[u8]> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("it ends in the middle of a value")?;
        let taken = self.bytes.get(self.at..end).ok_or("it ends in the middle of a value")?;
        self.at = end;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "it ends in the middle of a value".to_owned())
    }

    /// LONG1: a little-endian number of up to eight bytes.
    fn long(&mut self) -> Step<i64> {
        let [length] = self.take_array()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return Err(format!("a whole number of {} bytes; at most 8 are read", bytes.len()));
        }

        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut all = if negative { [0xff; 8] } else { [0; 8] };
        for (slot, byte) in all.iter_mut().zip(bytes) {
            *slot = *byte;
        }

        Ok(i64::from_le_bytes(all))
    }

    fn line(&mut self) -> Step<String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let line = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| "a name that is not UTF-8")?;
        self.at += 1;
        Ok(line)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn push_text(&mut self, length: u64) -> Step<()> {
        let length = usize::try_from(length).map_err(|_| "a text longer than the file")?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a text that is not UTF-8")?;
        let text = Rc::from(text);
        self.push(Value::Text(text));
        Ok(())
    }

    fn push_object(&mut self, object: Object) {
        self.objects.push(object);
        self.push(Value::Object(self.objects.len() - 1));
    }

    fn pop(&mut self) -> Step<Value> {
        let lowest = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= lowest {
            return Err("it takes a value where there is none".to_owned());
        }
        self.stack.pop().ok_or_else(|| "it takes a value where there is none".to_owned())
    }

    fn pop_text(&mut self) -> Step<Rc<str>> {
        match self.pop()? {
            Value::Text(text) => Ok(text),
            other => Err(format!("{other:?} where a text is expected")),
        }
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.marks.pop().ok_or("it closes what was not opened")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple_of(&mut self, length: usize) -> Step<()> {
        let mut items = Vec::with_capacity(length);
        for _ in 0..length {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push_object(Object::Tuple(items));
        Ok(())
    }

    fn top_object(&mut self) -> Step<&mut Object> {
        let Some(Value::Object(index)) = self.stack.last() else {
            return Err("it fills what is no container".to_owned());
        };
        self.objects.get_mut(*index).ok_or_else(|| "it fills what is no container".to_owned())
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        match self.top_object()? {
            Object::List(list) => list.extend(items),
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value>) -> Step<()> {
        let Object::Dict(dict) = self.top_object()? else {
            return Err("it sets an item of what is no dictionary".to_owned());
        };

        let mut items = items.into_iter();
        while let Some(key) = items.next() {
            dict.push((key, items.next().ok_or("a key without a value")?));
        }

        Ok(())
    }

    fn remember(&mut self, slot: u64) -> Step<()> {
        let value = self.stack.last().ok_or("it remembers a value where there is none")?.clone();
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u64) -> Step<()> {
        let value = self.memo.get(&slot).ok_or_else(|| format!("it recalls value {slot}, which was not remembered"))?;
        let value = value.clone();
        self.push(value);
        Ok(())
    }

    fn constructor(&mut self, module: &str, name: &str) -> Step<()> {
        let known = match (module, name) {
            ("collections", "OrderedDict") => true,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_parameter") => true,
            ("torch", name) => name.ends_with("Storage"),
            _ => false,
        };

        if !known {
            return Err(format!(
                "it constructs `{module}.{name}`, which is not part of named tensors; nothing was run"
            ));
        }

        self.push(Value::Constructor(format!("{module} {name}").into()));

        Ok(())
    }

    fn pop_tuple(&mut self) -> Step<&[Value]> {
        let value = self.pop()?;
        match value {
            Value::Object(index) => match self.objects.get(index) {
                Some(Object::Tuple(items)) => Ok(items),
                _ => Err("arguments that are no tuple".to_owned()),
            },
            _ => Err("arguments that are no tuple".to_owned()),
        }
    }

    /// A reference to a storage: `('storage', torch.HalfStorage, '0', 'cpu', 1234)`.
    fn persistent(&mut self) -> Step<()> {
        let storage = match self.pop_tuple()? {
            [Value::Text(what), Value::Constructor(kind), Value::Text(key), _, Value::Int(_)]
                if **what == *"storage" && kind.starts_with("torch ") =>
            {
                Storage { kind: kind.trim_start_matches("torch ").into(), key: key.clone() }
            }
            _ => return Err("a reference that is not to the storage of a tensor".to_owned()),
        };

        self.push_object(Object::Storage(storage));
        Ok(())
    }

    fn reduce(&mut self) -> Step<()> {
        let arguments = self.pop_tuple()?.to_vec();
        let Value::Constructor(constructor) = self.pop()? else {
            return Err("it calls what is no constructor".to_owned());
        };

        match &*constructor {
            "collections OrderedDict" if arguments.is_empty() => self.push_object(Object::Dict(Vec::new())),
            "torch._utils _rebuild_tensor_v2" => {
                let tensor = self.tensor(&arguments)?;
                self.push_object(Object::Tensor(tensor));
            }
            // A parameter is its data, the first argument.
            "torch._utils _rebuild_parameter" => {
                let data = arguments.into_iter().next().ok_or("a parameter without data")?;
                self.push(data);
            }
            other => return Err(format!("it calls `{other}` with arguments that are not understood")),
        }

        Ok(())
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`
    fn tensor(&self, arguments: &[Value]) -> Step<TensorRecord> {
        let [storage, Value::Int(offset), shape, strides, ..] = arguments else {
            return Err("a tensor without storage, offset, shape and strides".to_owned());
        };

        let storage = match storage {
            Value::Object(index) => match self.objects.get(*index) {
                Some(Object::Storage(storage)) => storage.clone(),
                _ => return Err("a tensor without a storage".to_owned()),
            },
            _ => return Err("a tensor without a storage".to_owned()),
        };

        let offset = usize::try_from(*offset).map_err(|_| "a tensor with a negative offset")?;

        Ok(TensorRecord { storage, offset, shape: self.sizes(shape)?, strides: self.sizes(strides)? })
    }

    fn sizes(&self, value: &Value) -> Step<Vec<usize>> {
        let items = match value {
            Value::Object(index) => match self.objects.get(*index) {
                Some(Object::Tuple(items) | Object::List(items)) => items,
                _ => return Err("a shape that is no tuple".to_owned()),
            },
            _ => return Err("a shape that is no tuple".to_owned()),
        };

        items
            .iter()
            .map(|item| match item {
                Value::Int(size) => usize::try_from(*size).map_err(|_| format!("a size of {size}")),
                other => Err(format!("{other:?} as a size")),
            })
            .collect()
    }

    /// Attributes of an object; those of a dictionary (`_metadata` of a state) say nothing about its tensors.
    fn build(&mut self) -> Step<()> {
        self.pop()?;

        match self.top_object()? {
            Object::Dict(_) => Ok(()),
            _ => Err("it sets attributes of what is no dictionary".to_owned()),
        }
    }
}
