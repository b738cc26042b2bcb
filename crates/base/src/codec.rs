//! Reading and writing bytes: fixed-width integers are little-endian, `varint`s are LEB128, byte strings carry their length first.
//!
//! Reading never panics and never allocates more than its input holds: what does not fit is [`Malformed`].

use std::fmt;

/// The bytes end early, or hold a value that their format does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed bytes")
    }
}

impl std::error::Error for Malformed {}

/// Appends values to a byte vector.
pub trait Write {
    /// One byte.
    fn put_u8(&mut self, value: u8);
    /// Two bytes, little-endian.
    fn put_u16(&mut self, value: u16);
    /// Four bytes, little-endian.
    fn put_u32(&mut self, value: u32);
    /// Eight bytes, little-endian.
    fn put_u64(&mut self, value: u64);
    /// One to ten bytes.
    fn put_varint(&mut self, value: u64);
    /// A signed number as a zigzag varint: small magnitudes are short.
    fn put_signed(&mut self, value: i64);
    /// A length and that many bytes.
    fn put_bytes(&mut self, value: &[u8]);
    /// `None` as 0, `Some(n)` as n + 1. `u64::MAX` does not fit.
    fn put_option(&mut self, value: Option<u64>);
}

impl Write for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn put_signed(&mut self, value: i64) {
        self.put_varint(((value << 1) ^ (value >> 63)) as u64);
    }

    fn put_bytes(&mut self, value: &[u8]) {
        self.put_varint(value.len() as u64);
        self.extend_from_slice(value);
    }

    fn put_option(&mut self, value: Option<u64>) {
        self.put_varint(value.map_or(0, |value| value + 1));
    }
}

/// Takes values from the front of a byte slice. The slices it returns borrow from its input.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// What has not been read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails unless everything has been read: trailing bytes mean that writer and reader disagree.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A LEB128 number of at most ten bytes that fits 64 bits.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    /// A varint that must fit the narrower type `T`.
    pub fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.varint()?).map_err(|_| Malformed)
    }

    /// A zigzag varint.
    pub fn signed(&mut self) -> Result<i64, Malformed> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.narrow()?;
        self.take(length)
    }

    /// A byte string that must be UTF-8.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// What [`Write::put_option`] wrote.
    pub fn option(&mut self) -> Result<Option<u64>, Malformed> {
        Ok(self.varint()?.checked_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width_read_back() {
        let mut bytes = Vec::new();
        let numbers = [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        for number in numbers {
            bytes.put_varint(number);
            bytes.put_signed(number as i64);
        }
        bytes.put_option(None);
        bytes.put_option(Some(0));
        bytes.put_bytes(b"abc");
        let mut reader = Reader::new(&bytes);
        for number in numbers {
            assert_eq!(reader.varint(), Ok(number));
            assert_eq!(reader.signed(), Ok(number as i64));
        }
        assert_eq!(reader.option(), Ok(None));
        assert_eq!(reader.option(), Ok(Some(0)));
        assert_eq!(reader.text(), Ok("abc"));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn short_overlong_and_trailing_bytes_are_malformed() {
        assert_eq!(Reader::new(&[]).u8(), Err(Malformed));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(Malformed));
        assert_eq!(Reader::new(&[0xff; 11]).varint(), Err(Malformed));
        // 2^64, one more than fits.
        assert_eq!(Reader::new(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02]).varint(), Err(Malformed));
        assert_eq!(Reader::new(&[5, b'a']).bytes(), Err(Malformed));
        assert_eq!(Reader::new(&[1, 0xff]).text(), Err(Malformed));
        assert_eq!(Reader::new(&[0]).finish(), Err(Malformed));
    }
}
