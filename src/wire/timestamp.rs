//! Reads the two forms of a posted time: integer milliseconds since the epoch, and an RFC 3339
//! string.
//!
//! Knows no clock. Invariant: what is accepted lies in the range that a JavaScript `Date` can hold.

use crate::wire::object;

/// The last millisecond of a JavaScript `Date` (ECMA-262, section 21.4.1.1).
const DATE_MS_MAX: i64 = 8_640_000_000_000_000;

/// Milliseconds since the epoch of a raw JSON value: an integer from 0 on, or an RFC 3339 string
/// (which may lie before 1970). `None` for everything else.
pub fn parse_raw(raw: &str) -> Option<i64> {
    if let Some(text) = object::string(raw) {
        return rfc3339_ms(&text);
    }
    let ms = object::integer(raw)?;
    (0..=DATE_MS_MAX).contains(&ms).then_some(ms)
}

/// Milliseconds since the epoch of an RFC 3339 `date-time` (section 5.6). Digits after the third of
/// a fraction are cut off; a leap second counts as the first instant of the next minute.
pub fn rfc3339_ms(text: &str) -> Option<i64> {
    let (head, rest) = text.as_bytes().split_at_checked(19)?;
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T' | b't', h1, h2, b':', n1, n2, b':', s1, s2] = head else {
        return None;
    };
    let year = digits(&[y1, y2, y3, y4])?;
    let (month, day) = (digits(&[m1, m2])?, digits(&[d1, d2])?);
    let (hour, minute, second) = (digits(&[h1, h2])?, digits(&[n1, n2])?, digits(&[s1, s2])?);
    let fine = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 60;
    if !fine {
        return None;
    }
    let (fraction_ms, zone) = fraction(rest)?;
    let minutes = days_since_epoch(year, month, day) * 1_440 + hour * 60 + minute - offset_minutes(zone)?;
    Some((minutes * 60 + second) * 1_000 + fraction_ms)
}

/// The milliseconds of a fraction such as `.5`, if there is one, and what follows it.
fn fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, rest) = text.split_at_checked(length)?;
    if fraction.is_empty() {
        return None;
    }
    let padded = fraction.iter().chain(b"000").take(3);
    let ms = padded.fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0'));
    Some((ms, rest))
}

/// How far local time is ahead of UTC.
fn offset_minutes(zone: &[u8]) -> Option<i64> {
    let (sign, [h1, h2, b':', m1, m2]) = (match zone {
        b"Z" | b"z" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    }) else {
        return None;
    };
    let (hours, minutes) = (digits(&[*h1, *h2])?, digits(&[*m1, *m2])?);
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes))
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| i64::from(byte - b'0'))?;
        Some(number * 10 + digit)
    })
}

fn days_in_month(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. The year is taken to begin in March,
/// so that a leap day is its last day.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted() {
        let table = [
            ("0", 0),
            ("1700000000000", 1_700_000_000_000),
            (r#""1970-01-01T00:00:00Z""#, 0),
            (r#""2024-02-29T12:34:56.789Z""#, 1_709_210_096_789),
            (r#""2024-02-29t12:34:56.7899999z""#, 1_709_210_096_789),
            (r#""2024-02-29T12:34:56.5+02:00""#, 1_709_202_896_500),
            (r#""2024-02-29T12:34:56-05:30""#, 1_709_229_896_000),
            (r#""2016-12-31T23:59:60Z""#, 1_483_228_800_000),
            (r#""1969-12-31T23:59:59.999Z""#, -1),
            (r#""0000-01-01T00:00:00Z""#, -62_167_219_200_000),
            (r#""9999-12-31T23:59:59Z""#, 253_402_300_799_000),
            (r#""2000\u002d03-01T00:00:00Z""#, 951_868_800_000),
        ];
        for (raw, ms) in table {
            assert_eq!(parse_raw(raw), Some(ms), "{raw}");
        }
    }

    #[test]
    fn refused() {
        for raw in ["null", "true", "1.5", "1e12", "-1", "8640000000000001", "[]", "{}", r#""\ud800""#] {
            assert_eq!(parse_raw(raw), None, "{raw}");
        }
        let texts = [
            "",
            "1700000000000",
            "2024-02-29",
            "2024-02-29T12:34:56",
            "2024-02-29 12:34:56Z",
            "2024-02-29T12:34Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:61Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00+0200",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00Zx",
            "+024-01-01T00:00:00Z",
            "2024-01-01T00:00:0éZ",
            "２０２４-01-01T00:00:00Z",
        ];
        for text in texts {
            assert_eq!(rfc3339_ms(text), None, "{text}");
        }
    }
}
