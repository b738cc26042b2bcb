//! CRC-32C (Castagnoli), in hardware where there is any: detects every damaged byte run up to 32 bits and misses longer damage once in
//! four thousand million times. Not a defence against forgery.

/// The checksum of `bytes`, continued from `seed` (0 at the beginning).
pub fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(seed, bytes)
}
