//! Prints the results of a run, in the layout of wrk2 or as one JSON document.
//!
//! The layout follows wrk2 to the last blank, including its units, its rounding and its percentile
//! spectrum, so that a program that reads one tool's output can read the other's. There is no I/O:
//! all functions return text.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::Plan;
use super::tally::{FAILURES, Failure, Tally};

const PERCENTILES: [(&str, f64); 8] = [
    ("p50", 50.0),
    ("p75", 75.0),
    ("p90", 90.0),
    ("p99", 99.0),
    ("p99.9", 99.9),
    ("p99.99", 99.99),
    ("p99.999", 99.999),
    ("p100", 100.0),
];
const RULE: &str = "----------------------------------------------------------";
/// How many steps the spectrum takes until half of the remaining distance to 100 %.
const TICKS_PER_HALF_DISTANCE: f64 = 5.0;
/// The sub-buckets of a histogram with three digits.
const SUB_BUCKETS: u32 = 2048;

/// A number with its unit. wrk2 changes to the next unit from 85 per cent of it on.
fn with_unit(mut amount: f64, scale: f64, base: &str, units: &[&str], digits: usize) -> String {
    let mut name = base;
    for unit in units {
        if amount < scale * 0.85 {
            break;
        }
        amount /= scale;
        name = unit;
    }
    format!("{amount:.digits$}{name}")
}

fn time_us(us: f64) -> String {
    if us >= 1e6 { with_unit(us / 1e6, 60.0, "s", &["m"], 2) } else { with_unit(us, 1000.0, "us", &["ms"], 2) }
}

fn time_s(seconds: f64) -> String {
    with_unit(seconds, 60.0, "s", &["m"], 0)
}

fn metric(number: f64) -> String {
    with_unit(number, 1000.0, "", &["k", "M", "G", "T"], 2)
}

fn binary(bytes: f64) -> String {
    with_unit(bytes, 1024.0, "", &["K", "M", "G", "T"], 2)
}

/// Pads a number so that its digits end in the same column whatever its unit.
fn column(text: &str, width: usize) -> String {
    let unit = text.chars().rev().take(2).filter(char::is_ascii_alphabetic).count();
    let (pad, width) = (2 - unit, width - (2 - unit));
    format!("{text:>width$.width$}{:pad$}", "")
}

fn stats_line(name: &str, text: fn(f64) -> String, mean: f64, deviation: f64, max: f64, within: f64) -> String {
    let (mean, deviation, max) = (column(&text(mean), 8), column(&text(deviation), 10), column(&text(max), 9));
    format!("    {name:<10}{mean}{deviation}{max}{within:>8.2}%\n")
}

/// The mean, the standard deviation, the maximum, and the per cent of values that lie within one
/// deviation of the mean.
fn latency_stats(latency: &Histogram<u64>) -> (f64, f64, f64, f64) {
    if latency.is_empty() {
        return (0.0, 0.0, 0.0, 0.0);
    }
    let (mean, deviation) = (latency.mean(), latency.stdev());
    let within = latency.count_between((mean - deviation).max(0.0) as u64, (mean + deviation) as u64);
    let max = latency.lowest_equivalent(latency.max());
    (mean, deviation, max as f64, 100.0 * within as f64 / latency.len() as f64)
}

fn rate_stats(rates: &[f64]) -> (f64, f64, f64, f64) {
    if rates.is_empty() {
        return (0.0, 0.0, 0.0, 0.0);
    }
    let count = rates.len() as f64;
    let mean = rates.iter().sum::<f64>() / count;
    let squares: f64 = rates.iter().map(|rate| (rate - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0).max(1.0)).sqrt();
    let within = rates.iter().filter(|&&rate| (rate - mean).abs() <= deviation).count();
    (mean, deviation, rates.iter().copied().fold(0.0, f64::max), 100.0 * within as f64 / count)
}

/// One line of the percentile spectrum.
#[derive(Debug, PartialEq)]
struct Step {
    value: u64,
    percentile: f64,
    count: u64,
}

/// The percentile spectrum as HdrHistogram's C library walks it, which ends at another point than
/// the crate's iterator.
fn spectrum(latency: &Histogram<u64>) -> Vec<Step> {
    let (all, mut count, mut last, mut next) = (latency.len(), 0, 0, 0.0_f64);
    let mut steps = Vec::new();
    for value in latency.iter_recorded() {
        count += value.count_at_value();
        last = latency.highest_equivalent(value.value_iterated_to());
        while next <= 100.0 * count as f64 / all as f64 {
            steps.push(Step { value: last, percentile: next / 100.0, count });
            let halvings = (100.0 / (100.0 - next)).log2().floor();
            next += 100.0 / (TICKS_PER_HALF_DISTANCE * (halvings + 1.0).exp2());
            if count == all {
                break;
            }
        }
    }
    steps.push(Step { value: last, percentile: 1.0, count });
    steps
}

fn distribution(latency: &Histogram<u64>) -> String {
    let mut out = "  Latency Distribution (HdrHistogram - Recorded Latency)\n".to_owned();
    for (_, percentile) in PERCENTILES {
        let value = column(&time_us(latency.value_at_percentile(percentile) as f64), 10);
        let _ = writeln!(out, "{percentile:7.3}%{value}");
    }
    out
}

fn detailed(latency: &Histogram<u64>) -> String {
    let mut out = "\n  Detailed Percentile spectrum:\n".to_owned();
    let _ = writeln!(out, "{:>12} {:>12} {:>12} {:>12}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for Step { value, percentile, count } in spectrum(latency) {
        let (ms, inverted) = (value as f64 / 1000.0, 1.0 / (1.0 - percentile));
        let _ = writeln!(out, "{ms:12.3} {percentile:12.6} {count:12} {inverted:12.2}");
    }
    let (mean, deviation, max, _) = latency_stats(latency);
    let (mean, deviation, max) = (mean / 1000.0, deviation / 1000.0, max / 1000.0);
    let _ = writeln!(out, "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]");
    let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {:12}]", latency.len());
    let _ = writeln!(out, "#[Buckets = {:12}, SubBuckets     = {SUB_BUCKETS:12}]", latency.buckets());
    let _ = writeln!(out, "{RULE}");
    out
}

/// The lines that are printed before the run.
pub fn head(plan: &Plan) -> String {
    let (time, urls) = (time_s(plan.duration.as_secs_f64()), plan.urls().join(" "));
    format!("Running {time} test @ {urls}\n  {} threads and {} connections\n", plan.threads, plan.connections)
}

/// The lines that are printed after the run.
pub fn tail(tally: &Tally, seconds: f64, with_spectrum: bool) -> String {
    let mut out = format!("  Thread Stats{:>6}{:>11}{:>8}{:>12}\n", "Avg", "Stdev", "Max", "+/- Stdev");
    let (mean, deviation, max, within) = latency_stats(&tally.latency);
    out += &stats_line("Latency", time_us, mean, deviation, max, within);
    let (mean, deviation, max, within) = rate_stats(&tally.rates);
    out += &stats_line("Req/Sec", metric, mean, deviation, max, within);
    out += &distribution(&tally.latency);
    if with_spectrum {
        out += &detailed(&tally.latency);
    }
    let read = binary(tally.bytes as f64);
    let _ = writeln!(out, "  {} requests in {}, {read}B read", tally.answers, time_us(seconds * 1e6));
    if tally.all_failures() > 0 {
        let of = |failure| tally.failures(failure);
        let (closed, malformed) = (of(Failure::Closed), of(Failure::Malformed));
        let _ = writeln!(
            out,
            "  Socket errors: connect {}, read {}, write {}, timeout {}",
            of(Failure::Connect),
            of(Failure::Read) + closed + malformed,
            of(Failure::Write),
            of(Failure::Timeout)
        );
        if closed + malformed > 0 {
            let _ = writeln!(out, "  Of the read errors: closed before the answer {closed}, not HTTP {malformed}");
        }
    }
    if tally.refusals() > 0 {
        let _ = writeln!(out, "  Non-2xx or 3xx responses: {}", tally.refusals());
        let refusals = tally.statuses().filter(|(status, _)| !(200..400).contains(status));
        let list: Vec<String> = refusals.map(|(status, count)| format!("{status}: {count}")).collect();
        let _ = writeln!(out, "  Responses by status: {}", list.join(", "));
        for (status, sentence) in &tally.sentences {
            let _ = writeln!(out, "    {status}: {sentence}");
        }
    }
    let _ = writeln!(out, "Requests/sec: {:9.2}", tally.answers as f64 / seconds);
    let _ = writeln!(out, "Transfer/sec: {:>10}B", binary(tally.bytes as f64 / seconds));
    out
}

/// The whole result as a JSON document.
pub fn document(plan: &Plan, tally: &Tally, seconds: f64, interrupted: bool) -> String {
    let (mean, deviation, max, _) = latency_stats(&tally.latency);
    let mut latency = Map::new();
    let min = if tally.latency.is_empty() { 0 } else { tally.latency.min() };
    for (name, value) in
        [("mean", json!(mean)), ("stdev", json!(deviation)), ("min", json!(min)), ("max", json!(max as u64))]
    {
        latency.insert(name.to_owned(), value);
    }
    for (name, percentile) in PERCENTILES {
        latency.insert(name.to_owned(), json!(tally.latency.value_at_percentile(percentile)));
    }
    let errors: Map<String, Value> =
        FAILURES.iter().map(|&(name, failure)| (name.to_owned(), json!(tally.failures(failure)))).collect();
    let statuses: Map<String, Value> =
        tally.statuses().map(|(status, count)| (status.to_string(), json!(count))).collect();
    let sentences: Map<String, Value> =
        tally.sentences.iter().map(|(status, sentence)| (status.to_string(), json!(sentence))).collect();
    let document = json!({
        "config": {
            "urls": plan.urls(),
            "threads": plan.threads,
            "connections": plan.connections,
            "rate": plan.rate,
            "duration_s": plan.duration.as_secs_f64(),
            "warmup_s": plan.warmup.as_secs_f64(),
            "timeout_s": plan.timeout.as_secs_f64(),
            "mix": { "get": plan.mix.get, "put": plan.mix.put, "delete": plan.mix.delete },
            "keys": plan.keys,
            "size": plan.size,
            "query": plan.query,
            "seed": plan.seed,
        },
        "interrupted": interrupted,
        "seconds": seconds,
        "requests": tally.answers,
        "successes": tally.successes(),
        "non_2xx_3xx": tally.refusals(),
        "bytes_read": tally.bytes,
        "reconnects": tally.reconnects,
        "errors": errors,
        "statuses": statuses,
        "refusals": sentences,
        "requests_per_second": tally.answers as f64 / seconds,
        "bytes_per_second": tally.bytes as f64 / seconds,
        "recorded": tally.latency.len(),
        "latency_us": latency,
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_of_wrk2() {
        for (us, text) in [
            (0.0, "0.00us"),
            (849.0, "849.00us"),
            (850.0, "0.85ms"),
            (1234.0, "1.23ms"),
            (999_999.0, "1000.00ms"),
            (1e6, "1.00s"),
            (40.8e6, "40.80s"),
            (51e6, "0.85m"),
            (60e6, "1.00m"),
            (3600e6, "60.00m"),
        ] {
            assert_eq!(time_us(us), text);
        }
        assert_eq!([time_s(10.0), time_s(60.0), time_s(3600.0)], ["10s", "1m", "60m"]);
        assert_eq!([metric(0.0), metric(2500.0), metric(1e6)], ["0.00", "2.50k", "1.00M"]);
        assert_eq!([binary(100.0), binary(1024.0 * 1.5), binary(1_048_576.0)], ["100.00", "1.50K", "1.00M"]);
    }

    fn sample() -> Tally {
        let mut tally = Tally::new();
        for us in 1..=1000 {
            tally.latency.saturating_record(us);
            tally.answered(if us <= 900 { 200 } else { 404 }, us);
        }
        tally.latency.saturating_record(60_000_000);
        tally.rates = vec![1000.0, 1100.0, 900.0, 5000.0];
        tally.bytes = 123_456;
        tally
    }

    #[test]
    fn the_layout_is_that_of_wrk2() {
        let expected = "  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
             Latency    60.45ms    1.90s    1.00m    99.90%\n    \
             Req/Sec     2.00k     2.00k    5.00k    75.00%\n  \
             Latency Distribution (HdrHistogram - Recorded Latency)\n \
             50.000%  501.00us\n \
             75.000%  751.00us\n \
             90.000%    0.90ms\n \
             99.000%    0.99ms\n \
             99.900%    1.00ms\n \
             99.990%    1.00m \n \
             99.999%    1.00m \n\
             100.000%    1.00m \n  \
             1000 requests in 1.00m, 120.56KB read\n  \
             Non-2xx or 3xx responses: 100\n  \
             Responses by status: 404: 100\n\
             Requests/sec:     16.67\n\
             Transfer/sec:      2.01KB\n";
        assert_eq!(tail(&sample(), 60.0, false), expected);
    }

    #[test]
    fn failures_are_told_by_kind() {
        let mut tally = Tally::new();
        tally.failed(Failure::Connect);
        tally.failed(Failure::Closed);
        tally.failed(Failure::Malformed);
        tally.failed(Failure::Timeout);
        let text = tail(&tally, 1.0, false);
        assert!(text.contains("  Socket errors: connect 1, read 2, write 0, timeout 1\n"), "{text}");
        assert!(text.contains("  Of the read errors: closed before the answer 1, not HTTP 1\n"), "{text}");
        assert!(!text.contains("Non-2xx"), "{text}");
    }

    #[test]
    fn the_spectrum_has_the_steps_and_columns_of_hdrhistogram() {
        let mut latency = Histogram::new_with_bounds(1, 24 * 60 * 60 * 1_000_000, 3).expect("bounds");
        for us in [1000, 1000, 2000, 4000] {
            latency.saturating_record(us);
        }
        let text = detailed(&latency);
        let expected = "\n  Detailed Percentile spectrum:\n       \
             Value   Percentile   TotalCount 1/(1-Percentile)\n\n       \
             1.000     0.000000            2         1.00\n       \
             1.000     0.100000            2         1.11\n       \
             1.000     0.200000            2         1.25\n       \
             1.000     0.300000            2         1.43\n       \
             1.000     0.400000            2         1.67\n       \
             1.000     0.500000            2         2.00\n       \
             2.000     0.550000            3         2.22\n       \
             2.000     0.600000            3         2.50\n       \
             2.000     0.650000            3         2.86\n       \
             2.000     0.700000            3         3.33\n       \
             2.000     0.750000            3         4.00\n       \
             4.001     0.775000            4         4.44\n       \
             4.001     1.000000            4          inf\n\
             #[Mean    =        2.000, StdDeviation   =        1.225]\n\
             #[Max     =        4.000, Total count    =            4]\n\
             #[Buckets =           27, SubBuckets     =         2048]\n\
             ----------------------------------------------------------\n";
        assert_eq!(text, expected);
        let nothing = Histogram::new_with_bounds(1, 1000, 3).expect("bounds");
        assert_eq!(spectrum(&nothing), [Step { value: 0, percentile: 1.0, count: 0 }]);
    }
}
