//! Times on the wire: RFC 3339.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since the Unix epoch as `2026-01-31T23:59:59.123Z`: UTC, three decimals, always 24 characters. Years up to 9999.
///
/// Source of the calendar arithmetic: Hinnant, "chrono-compatible low-level date algorithms".
pub fn format(ms: u64) -> [u8; 24] {
    const END_OF_9999: u64 = 253_402_300_799_999;
    let ms = ms.min(END_OF_9999);
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |start: usize, digits: usize, mut number: u64| {
        for place in (start..start + digits).rev() {
            text[place] = b'0' + (number % 10) as u8;
            number /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, of_day / 3_600_000);
    put(14, 2, of_day / 60_000 % 60);
    put(17, 2, of_day / 1_000 % 60);
    put(20, 3, of_day % 1_000);
    text
}

/// Milliseconds since the Unix epoch of an RFC 3339 time with any offset; times before 1970 are 0. Nothing: it is not one.
pub fn parse(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    let ms = time.unix_timestamp_nanos().div_euclid(1_000_000);
    Some(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ms: u64) -> String {
        String::from_utf8(format(ms).to_vec()).expect("digits are text")
    }

    #[test]
    fn times_are_written_as_they_are_read() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_001, "2024-02-29T23:59:59.001Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(text(ms), expected);
            assert_eq!(parse(expected), Some(ms));
        }
        assert_eq!(text(u64::MAX), "9999-12-31T23:59:59.999Z");
        // Every day of 400 years, which is a whole cycle of the calendar.
        for day in 0..146_097 {
            let ms = day * 86_400_000 + day;
            assert_eq!(parse(&text(ms)), Some(ms));
        }
    }

    #[test]
    fn offsets_are_understood_and_other_texts_refused() {
        assert_eq!(parse("2026-01-01T02:00:00+02:00"), Some(1_767_225_600_000));
        assert_eq!(parse("2025-12-31T21:00:00.5-03:00"), Some(1_767_225_600_500));
        assert_eq!(parse("1901-01-01T00:00:00Z"), Some(0));
        for bad in [
            "",
            "soon",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "1767225600",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
