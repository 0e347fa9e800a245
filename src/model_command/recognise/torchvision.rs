//! `--preset torchvision-NAME`: the transforms of torchvision's weights, which its documentation lists for each network.

use anyhow::bail;

use super::{IMAGENET_MEAN, IMAGENET_STD};
use crate::model_command::draft::{Channels, Draft, Filter, Head, Resize, Size, Sourced};

/// The beginning of the names of these presets.
pub(in crate::model_command) const PREFIX: &str = "torchvision-";

/// The transforms of some weights: the shortest edge is resized, then the centre is cut.
struct Weights {
    /// Empty if the network has one set of weights.
    suffix: &'static str,
    resize: u32,
    crop: u32,
    filter: Filter,
}

const fn weights(suffix: &'static str, resize: u32, crop: u32, filter: Filter) -> Weights {
    Weights { suffix, resize, crop, filter }
}

const OLD: &[Weights] = &[weights("", 256, 224, Filter::Bilinear)];
const NEW: &[Weights] = &[weights("", 232, 224, Filter::Bilinear)];
const OLD_AND_NEW: &[Weights] =
    &[weights("-v1", 256, 224, Filter::Bilinear), weights("-v2", 232, 224, Filter::Bilinear)];
const REGNET_SWAG: &[Weights] = &[
    weights("-v1", 256, 224, Filter::Bilinear),
    weights("-v2", 232, 224, Filter::Bilinear),
    weights("-swag-e2e", 384, 384, Filter::Bicubic),
    weights("-swag-linear", 224, 224, Filter::Bicubic),
];
const SWAG: &[Weights] =
    &[weights("-swag-e2e", 384, 384, Filter::Bicubic), weights("-swag-linear", 224, 224, Filter::Bicubic)];

/// Networks with the same transforms.
const NETWORKS: &[(&[&str], &[Weights])] = &[
    (
        &[
            "alexnet",
            "densenet121",
            "densenet161",
            "densenet169",
            "densenet201",
            "googlenet",
            "mnasnet0_5",
            "mnasnet1_0",
            "mobilenet_v3_small",
            "resnet18",
            "resnet34",
            "shufflenet_v2_x0_5",
            "shufflenet_v2_x1_0",
            "squeezenet1_0",
            "squeezenet1_1",
            "vgg11",
            "vgg11_bn",
            "vgg13",
            "vgg13_bn",
            "vgg16",
            "vgg16_bn",
            "vgg19",
            "vgg19_bn",
            "vit_b_32",
            "vit_l_32",
        ],
        OLD,
    ),
    (
        &[
            "convnext_base",
            "convnext_large",
            "mnasnet0_75",
            "mnasnet1_3",
            "resnext101_64x4d",
            "shufflenet_v2_x1_5",
            "shufflenet_v2_x2_0",
        ],
        NEW,
    ),
    (
        &[
            "mobilenet_v2",
            "mobilenet_v3_large",
            "regnet_x_400mf",
            "regnet_x_800mf",
            "regnet_x_1_6gf",
            "regnet_x_3_2gf",
            "regnet_x_8gf",
            "regnet_x_16gf",
            "regnet_x_32gf",
            "regnet_y_400mf",
            "regnet_y_800mf",
            "regnet_y_1_6gf",
            "regnet_y_3_2gf",
            "regnet_y_8gf",
            "resnet50",
            "resnet101",
            "resnet152",
            "resnext50_32x4d",
            "resnext101_32x8d",
            "wide_resnet50_2",
            "wide_resnet101_2",
        ],
        OLD_AND_NEW,
    ),
    (&["regnet_y_16gf", "regnet_y_32gf"], REGNET_SWAG),
    (&["regnet_y_128gf"], SWAG),
    (&["convnext_tiny"], &[weights("", 236, 224, Filter::Bilinear)]),
    (&["convnext_small"], &[weights("", 230, 224, Filter::Bilinear)]),
    (&["efficientnet_b0"], &[weights("", 256, 224, Filter::Bicubic)]),
    (&["efficientnet_b1"], &[weights("-v1", 256, 240, Filter::Bicubic), weights("-v2", 255, 240, Filter::Bilinear)]),
    (&["efficientnet_b2"], &[weights("", 288, 288, Filter::Bicubic)]),
    (&["efficientnet_b3"], &[weights("", 320, 300, Filter::Bicubic)]),
    (&["efficientnet_b4"], &[weights("", 384, 380, Filter::Bicubic)]),
    (&["efficientnet_b5"], &[weights("", 456, 456, Filter::Bicubic)]),
    (&["efficientnet_b6"], &[weights("", 528, 528, Filter::Bicubic)]),
    (&["efficientnet_b7"], &[weights("", 600, 600, Filter::Bicubic)]),
    (&["efficientnet_v2_s"], &[weights("", 384, 384, Filter::Bilinear)]),
    (&["efficientnet_v2_m"], &[weights("", 480, 480, Filter::Bilinear)]),
    (&["efficientnet_v2_l"], &[weights("", 480, 480, Filter::Bicubic)]),
    (&["inception_v3"], &[weights("", 342, 299, Filter::Bilinear)]),
    (&["maxvit_t"], &[weights("", 224, 224, Filter::Bicubic)]),
    (&["swin_t"], &[weights("", 232, 224, Filter::Bicubic)]),
    (&["swin_s"], &[weights("", 246, 224, Filter::Bicubic)]),
    (&["swin_b"], &[weights("", 238, 224, Filter::Bicubic)]),
    (&["swin_v2_t", "swin_v2_s"], &[weights("", 260, 256, Filter::Bicubic)]),
    (&["swin_v2_b"], &[weights("", 272, 256, Filter::Bicubic)]),
    (
        &["vit_b_16"],
        &[
            weights("-v1", 256, 224, Filter::Bilinear),
            weights("-swag-e2e", 384, 384, Filter::Bicubic),
            weights("-swag-linear", 224, 224, Filter::Bicubic),
        ],
    ),
    (
        &["vit_l_16"],
        &[
            weights("-v1", 242, 224, Filter::Bilinear),
            weights("-swag-e2e", 512, 512, Filter::Bicubic),
            weights("-swag-linear", 224, 224, Filter::Bicubic),
        ],
    ),
    (
        &["vit_h_14"],
        &[weights("-swag-e2e", 518, 518, Filter::Bicubic), weights("-swag-linear", 224, 224, Filter::Bicubic)],
    ),
];

/// The draft of a preset.
///
/// # Errors
/// If torchvision has no such network, or the network has several weights and the name does not say which.
pub(in crate::model_command) fn preset(name: &str) -> anyhow::Result<Draft> {
    let network = name.strip_prefix(PREFIX).unwrap_or(name).replace('.', "_");
    let mut similar = Vec::new();
    for (networks, weights) in NETWORKS {
        for known in *networks {
            for found in *weights {
                let full = format!("{known}{}", found.suffix);
                if full == network {
                    return Ok(draft(&full, known, found));
                }
                if full.starts_with(&network) || network.starts_with(known) {
                    similar.push(format!("{PREFIX}{full}"));
                }
            }
        }
    }
    if similar.is_empty() {
        bail!(
            "there is no preset {name:?}; docs/models.md lists them, and --resize, --size, --crop, --filter, --mean and --std say the same"
        );
    }
    bail!(
        "there is no preset {name:?}, since torchvision has several weights with different transforms; give one of: {}",
        similar.join(", ")
    )
}

fn draft(full: &str, network: &str, weights: &Weights) -> Draft {
    let source = format!("preset {PREFIX}{full}");
    // The weights of this network were trained with other values.
    let (mean, std) = if network == "efficientnet_v2_l" { ([0.5; 3], [0.5; 3]) } else { (IMAGENET_MEAN, IMAGENET_STD) };
    Draft {
        resize: Some(Sourced::new(Resize::ShortestEdge, &source)),
        size: Some(Sourced::new(Size::square(weights.resize), &source)),
        crop: Some(Sourced::new(Some(Size::square(weights.crop)), &source)),
        filter: Some(Sourced::new(weights.filter, &source)),
        rescale: Some(Sourced::new(1.0 / 255.0, &source)),
        mean: Some(Sourced::new(mean, &source)),
        std: Some(Sourced::new(std, &source)),
        channels: Some(Sourced::new(Channels::Rgb, &source)),
        activation: Some(Sourced::new(Head::Softmax, "torchvision's networks return logits of one label")),
        ..Draft::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preset_is_the_transform_of_its_weights() {
        let sizes = |name: &str| {
            let draft = preset(name).unwrap();
            (draft.size.unwrap().value.height, draft.crop.unwrap().value.unwrap().height, draft.filter.unwrap().value)
        };
        assert_eq!(sizes("torchvision-resnet18"), (256, 224, Filter::Bilinear));
        assert_eq!(sizes("torchvision-resnet50-v2"), (232, 224, Filter::Bilinear));
        assert_eq!(sizes("torchvision-swin_v2_t"), (260, 256, Filter::Bicubic));
        assert_eq!(sizes("torchvision-vit_l_16-swag-e2e"), (512, 512, Filter::Bicubic));
        assert_eq!(preset("torchvision-efficientnet_v2_l").unwrap().mean.unwrap().value, [0.5; 3]);
    }

    #[test]
    fn ambiguous_and_unknown_names_are_refused_with_what_exists() {
        let error = preset("torchvision-resnet50").unwrap_err().to_string();
        assert!(error.contains("torchvision-resnet50-v1, torchvision-resnet50-v2"), "{error}");
        let error = preset("torchvision-yolo").unwrap_err().to_string();
        assert!(error.contains("docs/models.md"), "{error}");
    }

    #[test]
    fn no_network_is_listed_twice() {
        let mut names: Vec<&str> = NETWORKS.iter().flat_map(|(networks, _)| networks.iter().copied()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
