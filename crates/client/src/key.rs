//! Chance: keys that nobody else draws, and the spread of repeats.

/// An idempotency key that nobody else draws: 128 random bits.
pub fn draw() -> String {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).expect("the operating system has random numbers");
    let digits = bits.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from_digit(u32::from(digit), 16).expect("it is below 16")).collect()
}

/// A number from 0 to 1.
pub(crate) fn chance() -> f64 {
    let bits = getrandom::u32().expect("the operating system has random numbers");
    f64::from(bits) / f64::from(u32::MAX)
}
