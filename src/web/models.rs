//! The models that requests may choose, and what is known about them.

use std::sync::{Arc, Mutex};

use anyhow::ensure;
use serde::Serialize;
use serde_json::{Value, json};

use super::error::Problem;
use crate::model::{self, ModelChoice, ModelPackage, ModelSummary};

/// The models of the service. Their packages need not exist on this machine; then only their names are known.
pub(super) struct Models {
    /// At least one; the first classifies images of requests that name none.
    served: Vec<Arc<Served>>,
}

struct Served {
    name: String,
    choice: ModelChoice,
    /// The classes of the package that was last asked for.
    classes: Mutex<Option<(ModelSummary, Arc<Vec<Class>>)>>,
}

/// One class of a model.
#[derive(Serialize)]
struct Class {
    /// The WordNet id, if the package has ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    label: String,
}

impl Models {
    /// # Errors
    /// If two of the models have the same name.
    pub(super) fn new(choices: Vec<ModelChoice>) -> anyhow::Result<Models> {
        let mut served: Vec<Arc<Served>> = Vec::new();
        for choice in choices {
            let name = model::model_name(&choice);
            ensure!(
                served.iter().all(|other| other.name != name),
                "two of the models have the name {name:?}, by which requests choose one: leave one --model out"
            );
            served.push(Arc::new(Served { name, choice, classes: Mutex::new(None) }));
        }
        Ok(Models { served })
    }

    /// Decides which model classifies the image of a request that names one in its query, in a field of its form, or
    /// not at all. `None` leaves the choice to the worker, which takes its first model. An empty name counts as none.
    ///
    /// # Errors
    /// 404 for a name that is not one of the service's, 400 for two different names.
    pub(super) fn choose(&self, query: Option<&str>, field: Option<&str>) -> Result<Option<String>, Problem> {
        let mut names = [query, field].into_iter().flatten().filter(|name| !name.is_empty());
        let Some(name) = names.next() else { return Ok(None) };
        if let Some(other) = names.find(|other| *other != name) {
            let detail = format!("the address names the model {name:?} and the form {other:?}; name one");
            return Err(Problem::malformed(detail));
        }
        Ok(Some(self.find(name)?.name.clone()))
    }

    /// Describes all models. This reads files, which does not take long.
    ///
    /// # Errors
    /// 503 if the labels of a package were asked for and cannot be read.
    pub(super) async fn list(self: &Arc<Self>, with_labels: bool) -> Result<Value, Problem> {
        let mut models = Vec::new();
        for served in &self.served {
            models.push(self.describe(served, with_labels).await?);
        }
        Ok(json!({ "models": models }))
    }

    /// Describes one model.
    ///
    /// # Errors
    /// 404 for a name that is not one of the service's, and the errors of [`Models::list`].
    pub(super) async fn show(&self, name: &str, with_labels: bool) -> Result<Value, Problem> {
        let described = self.describe(self.find(name)?, with_labels).await?;
        if with_labels && described.get("labels").is_none() {
            return Err(without_labels(name, "its package is not on this machine"));
        }
        Ok(described)
    }

    /// Returns the function that the service applies to the outputs of a model, as `model.toml` names it.
    ///
    /// # Errors
    /// 503 if the package of the model cannot be read on this machine.
    pub(super) async fn activation(&self, name: Option<&str>) -> Result<&'static str, Problem> {
        let served = match name {
            Some(name) => Arc::clone(self.find(name)?),
            None => Arc::clone(self.served.first().expect("a service has at least one model; this is a bug")),
        };
        let loaded = tokio::task::spawn_blocking(move || ModelPackage::load(&served.choice)).await;
        let unknown = || Problem::unavailable("the package of the model cannot be read on the machine of the web tier");
        loaded.map_err(|_panic| unknown())?.map(|package| package.activation().name()).map_err(|_| unknown())
    }

    async fn describe(&self, served: &Arc<Served>, with_labels: bool) -> Result<Value, Problem> {
        let is_default = self.served.first().is_some_and(|first| Arc::ptr_eq(first, served));
        let served = Arc::clone(served);
        let described = tokio::task::spawn_blocking(move || served.describe(is_default, with_labels)).await;
        described.map_err(|_panic| Problem::unavailable("the description of a model could not be read"))?
    }

    fn find(&self, name: &str) -> Result<&Arc<Served>, Problem> {
        let names = || self.served.iter().map(|served| served.name.as_str());
        self.served
            .iter()
            .find(|served| served.name == name)
            .ok_or_else(|| Problem::unknown_model(name, &names().collect::<Vec<_>>()))
    }
}

impl Served {
    fn describe(&self, is_default: bool, with_labels: bool) -> Result<Value, Problem> {
        let mut described = json!({ "name": self.name, "default": is_default });
        // A web tier may run on a machine without the packages. It still knows their names.
        let Ok(summary) = ModelSummary::read(&self.choice) else { return Ok(described) };
        described["version"] = json!(summary.version);
        described["digest"] = json!(self.digest(&summary));
        described["classes"] = json!(summary.classes);
        described["input"] = match summary.input_size {
            Some([height, width]) => json!({ "height": height, "width": width }),
            None => Value::Null,
        };
        let files = summary.files.iter();
        described["files"] =
            files.map(|file| json!({ "variant": file.variant, "digest": file.digest, "bytes": file.bytes })).collect();
        if with_labels {
            described["labels"] = json!(*self.classes(summary)?);
        }
        Ok(described)
    }

    /// The digest of the file that a worker takes on a machine like this one.
    fn digest<'a>(&self, summary: &'a ModelSummary) -> Option<&'a str> {
        let variant = match &self.choice.variant {
            Some(variant) => Some(variant.clone()),
            None => ModelPackage::variants(&self.choice).ok().and_then(|variants| variants.into_iter().next()),
        };
        let file = summary.files.iter().find(|file| Some(&file.variant) == variant.as_ref());
        file.or(summary.files.first()).map(|file| file.digest.as_str())
    }

    /// The classes in the order of their indices. A package is read once, because reading it verifies the whole file.
    fn classes(&self, summary: ModelSummary) -> Result<Arc<Vec<Class>>, Problem> {
        let mut known = self.classes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((of, classes)) = &*known
            && *of == summary
        {
            return Ok(Arc::clone(classes));
        }
        let package =
            ModelPackage::load(&self.choice).map_err(|error| without_labels(&self.name, &format!("{error:#}")))?;
        let class = |index: u32| Class {
            id: package.class_id(index).map(str::to_owned),
            label: package.label(index).to_owned(),
        };
        let classes = Arc::new((0..package.classes() as u32).map(class).collect::<Vec<_>>());
        *known = Some((summary, Arc::clone(&classes)));
        Ok(classes)
    }
}

fn without_labels(name: &str, reason: &str) -> Problem {
    Problem::unavailable(format!("the labels of the model {name:?} cannot be listed: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models(names: &[&str]) -> anyhow::Result<Models> {
        let choice = |name: &&str| ModelChoice { model: Some((*name).to_owned()), ..ModelChoice::default() };
        Models::new(names.iter().map(choice).collect())
    }

    #[test]
    fn request_gets_the_model_that_it_names_and_otherwise_the_first() {
        let models = models(&["no-such-a", "no-such-b@1"]).unwrap();
        for (query, field, chosen) in [
            (None, None, None),
            (Some(""), Some(""), None),
            (Some("no-such-b"), None, Some("no-such-b")),
            (None, Some("no-such-a"), Some("no-such-a")),
            (Some("no-such-b"), Some("no-such-b"), Some("no-such-b")),
            (Some(""), Some("no-such-b"), Some("no-such-b")),
        ] {
            assert_eq!(models.choose(query, field).unwrap().as_deref(), chosen, "{query:?} {field:?}");
        }
        let unknown = models.choose(Some("no-such-c"), None).unwrap_err();
        assert_eq!((unknown.status.as_u16(), unknown.kind), (404, "unknown-model"));
        assert!(
            unknown.detail.contains("\"no-such-c\"") && unknown.detail.contains("no-such-a, no-such-b"),
            "{unknown}"
        );
        assert_eq!(models.choose(Some("no-such-a"), Some("no-such-b")).unwrap_err().status.as_u16(), 400);
    }

    #[test]
    fn names_of_models_are_distinct() {
        let error = models(&["no-such-a@1", "no-such-a@2"]).err().unwrap().to_string();
        assert!(error.contains("no-such-a") && error.contains("--model"), "{error}");
    }
}
