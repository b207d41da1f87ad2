//! What a pickle may name: all that `torch.save` needs for tensors, and what trainers keep beside them.
//!
//! A pickle is a program, and naming a function is how it runs something. Nothing is run here: each of these names stands for
//! a meaning that is written in this program, and any other ends the reading.

use crate::dtype::Dtype;

/// The meaning of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global {
    /// A dict.
    Dict,
    /// A tensor of storage, offset, size and stride.
    Tensor,
    /// The same with a type of its own, behind two more arguments.
    TypedTensor,
    /// Its first argument.
    Parameter,
    /// A tensor by a function, its third of four arguments being those of the function.
    OfType,
    /// A shape.
    Size,
    /// The elements of a storage; `None`: bytes.
    Storage(Option<Dtype>),
    /// A type of elements.
    Dtype(Dtype),
    /// Something that trainers keep beside weights, and that is not looked into.
    Inert,
}

/// The meaning of `module.name`.
pub fn find(module: &[u8], name: &[u8]) -> Option<Global> {
    let is = |entry: &&(&str, &str, Global)| entry.0.as_bytes() == module && entry.1.as_bytes() == name;
    GLOBALS.iter().find(is).map(|(.., global)| *global)
}

const GLOBALS: &[(&str, &str, Global)] = &[
    ("torch._utils", "_rebuild_tensor_v2", Global::Tensor),
    ("torch._utils", "_rebuild_tensor_v3", Global::TypedTensor),
    ("torch._utils", "_rebuild_tensor", Global::Tensor),
    ("torch._utils", "_rebuild_parameter", Global::Parameter),
    ("torch._utils", "_rebuild_parameter_with_state", Global::Parameter),
    ("torch._tensor", "_rebuild_from_type_v2", Global::OfType),
    ("collections", "OrderedDict", Global::Dict),
    ("torch", "Size", Global::Size),
    ("torch", "FloatStorage", Global::Storage(Some(Dtype::F32))),
    ("torch", "HalfStorage", Global::Storage(Some(Dtype::F16))),
    ("torch", "BFloat16Storage", Global::Storage(Some(Dtype::BF16))),
    ("torch", "DoubleStorage", Global::Storage(Some(Dtype::F64))),
    ("torch", "LongStorage", Global::Storage(Some(Dtype::I64))),
    ("torch", "IntStorage", Global::Storage(Some(Dtype::I32))),
    ("torch", "ShortStorage", Global::Storage(Some(Dtype::I16))),
    ("torch", "CharStorage", Global::Storage(Some(Dtype::I8))),
    ("torch", "ByteStorage", Global::Storage(Some(Dtype::U8))),
    ("torch", "BoolStorage", Global::Storage(Some(Dtype::BOOL))),
    ("torch", "ComplexFloatStorage", Global::Storage(Some(Dtype::C64))),
    ("torch", "UntypedStorage", Global::Storage(None)),
    ("torch.storage", "UntypedStorage", Global::Storage(None)),
    ("torch.storage", "_UntypedStorage", Global::Storage(None)),
    ("torch", "float32", Global::Dtype(Dtype::F32)),
    ("torch", "float16", Global::Dtype(Dtype::F16)),
    ("torch", "bfloat16", Global::Dtype(Dtype::BF16)),
    ("torch", "float64", Global::Dtype(Dtype::F64)),
    ("torch", "float8_e4m3fn", Global::Dtype(Dtype::F8_E4M3)),
    ("torch", "float8_e5m2", Global::Dtype(Dtype::F8_E5M2)),
    ("torch", "float8_e4m3fnuz", Global::Dtype(Dtype::F8_E4M3FNUZ)),
    ("torch", "float8_e5m2fnuz", Global::Dtype(Dtype::F8_E5M2FNUZ)),
    ("torch", "float8_e8m0fnu", Global::Dtype(Dtype::F8_E8M0)),
    ("torch", "int64", Global::Dtype(Dtype::I64)),
    ("torch", "int32", Global::Dtype(Dtype::I32)),
    ("torch", "int16", Global::Dtype(Dtype::I16)),
    ("torch", "int8", Global::Dtype(Dtype::I8)),
    ("torch", "uint8", Global::Dtype(Dtype::U8)),
    ("torch", "uint16", Global::Dtype(Dtype::U16)),
    ("torch", "uint32", Global::Dtype(Dtype::U32)),
    ("torch", "uint64", Global::Dtype(Dtype::U64)),
    ("torch", "bool", Global::Dtype(Dtype::BOOL)),
    ("torch", "Tensor", Global::Inert),
    ("torch", "device", Global::Inert),
    ("torch.nn.parameter", "Parameter", Global::Inert),
    ("torch.torch_version", "TorchVersion", Global::Inert),
    ("numpy", "dtype", Global::Inert),
    ("numpy", "ndarray", Global::Inert),
    ("numpy.core.multiarray", "scalar", Global::Inert),
    ("numpy.core.multiarray", "_reconstruct", Global::Inert),
    ("numpy._core.multiarray", "scalar", Global::Inert),
    ("numpy._core.multiarray", "_reconstruct", Global::Inert),
    ("_codecs", "encode", Global::Inert),
    ("builtins", "set", Global::Inert),
    ("__builtin__", "set", Global::Inert),
    ("collections", "defaultdict", Global::Inert),
    ("collections", "Counter", Global::Inert),
    ("builtins", "dict", Global::Inert),
    ("__builtin__", "dict", Global::Inert),
    ("builtins", "bytearray", Global::Inert),
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", Global::Inert),
];
