//! A compact binary encoding: little-endian integers, a `u32` count before strings and lists, one byte before options.
//!
//! Decoding is strict: bytes that were not written by the same rules give an error, never a panic, and a count is trusted
//! only as far as there are bytes after it.

use std::fmt;
use std::io;

/// The reason why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end in the middle of a field.
    Short,
    /// There are bytes after the last field.
    Trailing(usize),
    /// A length exceeds the limit.
    Length(usize),
    /// A message, variant or flag is unknown.
    Unknown(&'static str, u8),
    /// A string is not UTF-8.
    Text,
    /// The value of this field is outside its range.
    Range(&'static str),
    /// A greeting has no magic, or a magic precedes something else.
    Misplaced,
    /// The peer has another version, or was built from other sources.
    Version {
        /// The peer's version.
        version: u16,
        /// The peer's build.
        build: String,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "a message that ends too early"),
            Self::Trailing(n) => write!(f, "{n} bytes behind a message"),
            Self::Length(n) => write!(f, "a length of {n} bytes, which is beyond the limit"),
            Self::Unknown(what, code) => write!(f, "unknown {what} {code}"),
            Self::Text => write!(f, "a text that is not UTF-8"),
            Self::Range(what) => write!(f, "{what} out of range"),
            Self::Misplaced => write!(f, "a greeting without its magic"),
            Self::Version { version, build } => write!(f, "version {version}, build {build}"),
        }
    }
}

impl std::error::Error for DecodeError {}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// The bytes not yet decoded.
#[derive(Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Creates a decoder of these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `n` bytes.
    ///
    /// # Errors
    /// When there are fewer.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Checks that no bytes are left.
    ///
    /// # Errors
    /// When there are.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

/// A value with an encoding. `get` reads exactly what `put` wrote.
pub trait Code: Sized {
    /// Appends the encoding of the value.
    fn put(&self, out: &mut Vec<u8>);

    /// Reads one value.
    ///
    /// # Errors
    /// When the bytes are not a value.
    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError>;

    /// Reads the value that these bytes are.
    ///
    /// # Errors
    /// When the bytes are not a value, or there are more of them.
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(bytes);
        let value = Self::get(&mut fields)?;
        fields.end()?;
        Ok(value)
    }

    /// Appends a count and the values.
    fn put_all(all: &[Self], out: &mut Vec<u8>) {
        count(all.len()).put(out);
        for one in all {
            one.put(out);
        }
    }

    /// Reads a count and the values.
    ///
    /// # Errors
    /// When the bytes are not a count and values.
    fn get_all(fields: &mut Fields<'_>) -> Result<Vec<Self>, DecodeError> {
        // The vector grows as values are read: the count alone must not allocate memory.
        let mut all = Vec::new();
        for _ in 0..u32::get(fields)? {
            all.push(Self::get(fields)?);
        }
        Ok(all)
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Code for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }

            fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
                let bytes = fields.take(size_of::<Self>())?;
                bytes.try_into().map(Self::from_le_bytes).map_err(|_| DecodeError::Short)
            }
        }
    )*};
}
integers!(u16, u32, u64, i64);

impl Code for u8 {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        fields.take(1).map(|bytes| bytes[0])
    }

    fn put_all(all: &[Self], out: &mut Vec<u8>) {
        count(all.len()).put(out);
        out.extend_from_slice(all);
    }

    fn get_all(fields: &mut Fields<'_>) -> Result<Vec<Self>, DecodeError> {
        let n = u32::get(fields)? as usize;
        fields.take(n).map(<[u8]>::to_vec)
    }
}

impl Code for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        match u8::get(fields)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Unknown("flag", other)),
        }
    }
}

impl Code for String {
    fn put(&self, out: &mut Vec<u8>) {
        u8::put_all(self.as_bytes(), out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        Self::from_utf8(u8::get_all(fields)?).map_err(|_| DecodeError::Text)
    }
}

impl<T: Code> Code for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        T::put_all(self, out);
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        T::get_all(fields)
    }
}

impl<T: Code> Code for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }

    fn get(fields: &mut Fields<'_>) -> Result<Self, DecodeError> {
        if bool::get(fields)? { T::get(fields).map(Some) } else { Ok(None) }
    }
}

/// Defines a struct whose encoding is its fields in their order.
macro_rules! coded_struct {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl $crate::wire::code::Code for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }

            fn get(fields: &mut $crate::wire::code::Fields<'_>) -> Result<Self, $crate::wire::code::DecodeError> {
                Ok(Self { $($field: $crate::wire::code::Code::get(fields)?,)* })
            }
        }
    };
}

/// Defines an enum whose encoding is the variant's code and then its fields in their order.
macro_rules! coded_enum {
    ($(#[$meta:meta])* $name:ident as $what:literal {
        $($(#[$vdoc:meta])* $code:literal $variant:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* })*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant { $($(#[$doc])* $field: $type,)* },)* }

        impl $name {
            /// Returns the first byte of the encoding.
            #[must_use]
            pub fn code(&self) -> u8 {
                match self { $(Self::$variant { .. } => $code,)* }
            }

            /// Appends the fields, without the code.
            pub fn put_fields(&self, out: &mut Vec<u8>) {
                let _ = &out;
                match self { $(Self::$variant { $($field),* } => { $($field.put(out);)* })* }
            }

            /// Reads the fields of the variant `code`.
            ///
            /// # Errors
            /// When there is no such variant, or the bytes are not its fields.
            pub fn get_fields(
                code: u8,
                fields: &mut $crate::wire::code::Fields<'_>,
            ) -> Result<Self, $crate::wire::code::DecodeError> {
                let _ = &fields;
                match code {
                    $($code => Ok(Self::$variant { $($field: $crate::wire::code::Code::get(fields)?,)* }),)*
                    other => Err($crate::wire::code::DecodeError::Unknown($what, other)),
                }
            }
        }

        impl $crate::wire::code::Code for $name {
            fn put(&self, out: &mut Vec<u8>) {
                out.push(self.code());
                self.put_fields(out);
            }

            fn get(fields: &mut $crate::wire::code::Fields<'_>) -> Result<Self, $crate::wire::code::DecodeError> {
                let code = u8::get(fields)?;
                Self::get_fields(code, fields)
            }
        }
    };
}

pub(crate) use {coded_enum, coded_struct};
