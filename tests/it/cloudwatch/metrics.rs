//! Metrics: values by simulated time in seconds.

use std::collections::{BTreeMap, BTreeSet};

use aws_smithy_cbor::Decoder;
use aws_smithy_cbor::data::Type;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metric {
    pub namespace: String,
    #[serde(rename = "MetricName")]
    pub name: String,
    #[serde(default)]
    pub dimensions: BTreeSet<Dimension>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dimension {
    pub name: String,
    pub value: String,
}

impl Metric {
    pub fn new(namespace: &str, name: &str, dimension: &str, value: &str) -> Metric {
        let dimension = Dimension { name: dimension.to_owned(), value: value.to_owned() };
        Metric { namespace: namespace.to_owned(), name: name.to_owned(), dimensions: BTreeSet::from([dimension]) }
    }
}

#[derive(Debug, Default)]
pub struct Metrics(BTreeMap<Metric, BTreeMap<u64, Vec<f64>>>);

impl Metrics {
    pub fn put(&mut self, metric: Metric, at: u64, value: f64) {
        self.0.entry(metric).or_default().entry(at).or_default().push(value);
    }

    /// The statistic of the period that begins at `start`. Returns `None` if there is no value.
    pub fn statistic(&self, metric: &Metric, statistic: &str, period: u64, start: u64) -> Option<f64> {
        let values: Vec<f64> =
            self.0.get(metric)?.range(start..start + period).flat_map(|(_, values)| values).copied().collect();
        let sum: f64 = values.iter().sum();
        let value = match statistic {
            "Sum" => sum,
            "Average" => sum / values.len() as f64,
            "Minimum" => values.iter().copied().fold(f64::INFINITY, f64::min),
            "Maximum" => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            "SampleCount" => values.len() as f64,
            other => panic!("statistic {other} is not supported"),
        };
        (!values.is_empty()).then_some(value)
    }
}

/// The values in the body of a `PutMetricData`.
pub fn put_metric_data(body: &[u8]) -> Vec<(Metric, f64)> {
    let put = read(&mut Decoder::new(body));
    let data = put["MetricData"].as_array().unwrap().iter();
    data.map(|datum| {
        let mut metric = datum.clone();
        metric["Namespace"] = put["Namespace"].clone();
        (serde_json::from_value(metric).unwrap(), datum["Value"].as_f64().unwrap())
    })
    .collect()
}

/// Reads one CBOR value, of the types that clients of CloudWatch write.
fn read(decoder: &mut Decoder) -> Value {
    match decoder.datatype().unwrap() {
        Type::Map | Type::MapIndef => {
            let length = decoder.map().unwrap();
            let mut map = Map::new();
            while has_next(decoder, length, map.len()) {
                let name = decoder.string().unwrap();
                map.insert(name, read(decoder));
            }
            Value::Object(map)
        }
        Type::Array | Type::ArrayIndef => {
            let length = decoder.list().unwrap();
            let mut list = Vec::new();
            while has_next(decoder, length, list.len()) {
                list.push(read(decoder));
            }
            Value::Array(list)
        }
        Type::String | Type::StringIndef => decoder.string().unwrap().into(),
        Type::F64 => decoder.double().unwrap().into(),
        Type::F32 => decoder.float().unwrap().into(),
        Type::Bool => decoder.boolean().unwrap().into(),
        _ => decoder.long().unwrap().into(),
    }
}

/// Returns whether another entry follows. Skips the break at the end of a list without a length.
fn has_next(decoder: &mut Decoder, length: Option<u64>, read: usize) -> bool {
    if let Some(length) = length {
        return (read as u64) < length;
    }
    let ends = decoder.datatype().unwrap() == Type::Break;
    if ends {
        decoder.skip().unwrap();
    }
    !ends
}
