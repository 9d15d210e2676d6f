//! The 57 subjects of MMLU in their four categories.

/// Categories with their subjects.
pub(crate) const CATEGORIES: [(&str, &[&str]); 4] = [
    (
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// The subjects of `mmlu` or of `mmlu_<category>`.
pub(crate) fn subjects(name: &str) -> Option<Vec<&'static str>> {
    if name == "mmlu" {
        return Some(
            CATEGORIES.iter().flat_map(|(_, subjects)| subjects.iter().copied()).collect(),
        );
    }
    let category = name.strip_prefix("mmlu_")?;
    let found = CATEGORIES.iter().find(|(known, _)| *known == category)?;
    Some(found.1.to_vec())
}

/// The subject of `mmlu_<subject>`.
pub(crate) fn subject(name: &str) -> Option<&'static str> {
    let subject = name.strip_prefix("mmlu_")?;
    CATEGORIES.iter().flat_map(|(_, subjects)| subjects.iter().copied()).find(|it| *it == subject)
}

/// The names of all subjects' tasks.
pub(crate) fn names() -> impl Iterator<Item = String> {
    let all = CATEGORIES.iter().flat_map(|(_, subjects)| subjects.iter());
    all.map(|subject| format!("mmlu_{subject}"))
}

/// What stands before the examples.
pub(crate) fn description(subject: &str) -> String {
    let words = subject.replace('_', " ");
    format!("The following are multiple choice questions (with answers) about {words}.\n\n")
}
