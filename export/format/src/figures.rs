//! Numbers as people read them: thousands in groups, three significant digits, sizes with their
//! unit.

/// A whole number with its thousands in groups: `4,000,000`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Three significant digits: `0.524`, `31.6`, `19,000`, `2.17e-3`. What is nothing but the rounding
/// error of a schedule that ends at 0 is `0`.
pub fn significant(number: f64) -> String {
    let size = number.abs();
    if size < 1e-15 {
        return "0".to_owned();
    }
    // Rounded first, so that 0.9996 is counted among the numbers from 1 on.
    let rounded: f64 = format!("{number:.2e}").parse().unwrap_or(number);
    match rounded.abs() {
        size if !size.is_finite() || !(1e-2..1e9).contains(&size) => format!("{number:.2e}"),
        size if size >= 100.0 => {
            let sign = if number < 0.0 { "-" } else { "" };
            format!("{sign}{}", grouped(size as u64))
        }
        size => {
            let decimals = 2 - size.log10().floor() as i32;
            format!("{number:.*}", decimals.max(0) as usize)
        }
    }
}

/// A size in bytes with its unit, three significant digits: `63.1 GB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["MB", "GB", "TB", "PB"];
    if bytes < 1_000_000 {
        return format!("{} kB", significant(bytes as f64 / 1e3));
    }
    let (mut number, mut unit) = (bytes as f64 / 1e6, 0);
    // From here on three digits round up to 1,000, which is one of the next unit.
    while number >= 999.5 && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1e3, unit + 1);
    }
    format!("{} {}", significant(number), UNITS[unit])
}

/// The keys of a JSON object with their values, one a line; numbers as people read them.
pub fn table(object: &serde_json::Value, width: usize) -> String {
    let all = object.as_object().into_iter().flatten();
    let lines: Vec<_> = all.map(|(key, it)| format!("{key:<width$} {}", value(key, it))).collect();
    lines.join("\n")
}

fn value(key: &str, it: &serde_json::Value) -> String {
    match it {
        serde_json::Value::Array(all) => {
            all.iter().map(|one| value(key, one)).collect::<Vec<_>>().join(" ")
        }
        serde_json::Value::Object(all) => {
            let one =
                |(name, it): (&String, &serde_json::Value)| format!("{name} {}", value(name, it));
            all.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        _ => match (it.as_u64(), it.as_f64()) {
            (Some(bytes), _) if key.contains("bytes") => size(bytes),
            (Some(number), _) => grouped(number),
            (None, Some(number)) => significant(number),
            (None, None) => it.as_str().map_or_else(|| it.to_string(), str::to_owned),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_in_groups() {
        let numbers = [0, 7, 999, 1000, 3_814_698, 4_000_000_770_048];
        let words = numbers.map(grouped);
        assert_eq!(words, ["0", "7", "999", "1,000", "3,814,698", "4,000,000,770,048"]);
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let numbers = [0.523_87, 0.999_6, 9.996, 31.62, 62_022.775_922, 18_959.59, -0.05, 2.5e-4];
        let words = numbers.map(significant);
        assert_eq!(
            words,
            ["0.524", "1.00", "10.0", "31.6", "62,000", "19,000", "-0.0500", "2.50e-4"]
        );
        assert_eq!([0.0, 2.168e-19, f64::NAN, 3e12].map(significant), ["0", "0", "NaN", "3.00e12"]);
    }

    #[test]
    fn a_table_shows_numbers_as_people_read_them() {
        let object = serde_json::json!({
            "tokens_per_second": 62_022.775_926, "peak_rss_bytes": 1_100_000_000_u64,
            "all": [1.25, 2.0], "kernel": "avx2", "threads": 2, "none": null,
        });
        let lines = "tokens_per_second    62,000\npeak_rss_bytes       1.10 GB\n\
                     all                  1.25 2.00\nkernel               avx2\n\
                     threads              2\nnone                 null";
        assert_eq!(table(&object, 20), lines);
    }

    #[test]
    fn sizes_have_the_unit_that_makes_them_short() {
        let sizes = [0, 512, 63_051_300_000, 999_600_000, 3_100_000, 4_200_000_000_000];
        let words = sizes.map(size);
        assert_eq!(words, ["0 kB", "0.512 kB", "63.1 GB", "1.00 GB", "3.10 MB", "4.20 TB"]);
    }
}
