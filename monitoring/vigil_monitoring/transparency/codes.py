"""Codes of the European Union's transparency templates and database, and what they mean.

Sources, read on 2026-11-29:

- categories and sub-categories: Commission Implementing Regulation (EU) 2024/2835, Annex I, table 2 (categories names), as
  providers publish it in their reports of 2026, with the codes of that table;
- restrictions, grounds, content types, sources and means: documentation of the DSA Transparency Database, "API documentation" of
  version 2 and "Additional explanation for statement attributes", https://transparency.dsa.ec.europa.eu/page/api-documentation,
  and the rules of its published source, https://github.com/digital-services-act/transparency-database.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

OTHER = "KEYWORD_OTHER"
"""Sub-category of what no other sub-category of its category captures."""

Visibility = Literal[
    "DECISION_VISIBILITY_CONTENT_REMOVED",
    "DECISION_VISIBILITY_CONTENT_DISABLED",
    "DECISION_VISIBILITY_CONTENT_DEMOTED",
    "DECISION_VISIBILITY_CONTENT_AGE_RESTRICTED",
    "DECISION_VISIBILITY_CONTENT_INTERACTION_RESTRICTED",
    "DECISION_VISIBILITY_CONTENT_LABELLED",
    "DECISION_VISIBILITY_OTHER",
]
Monetary = Literal["DECISION_MONETARY_SUSPENSION", "DECISION_MONETARY_TERMINATION", "DECISION_MONETARY_OTHER"]
Provision = Literal[
    "DECISION_PROVISION_PARTIAL_SUSPENSION",
    "DECISION_PROVISION_TOTAL_SUSPENSION",
    "DECISION_PROVISION_PARTIAL_TERMINATION",
    "DECISION_PROVISION_TOTAL_TERMINATION",
]
Account = Literal["DECISION_ACCOUNT_SUSPENDED", "DECISION_ACCOUNT_TERMINATED"]
ContentType = Literal[
    "CONTENT_TYPE_APP",
    "CONTENT_TYPE_AUDIO",
    "CONTENT_TYPE_IMAGE",
    "CONTENT_TYPE_PRODUCT",
    "CONTENT_TYPE_SYNTHETIC_MEDIA",
    "CONTENT_TYPE_TEXT",
    "CONTENT_TYPE_VIDEO",
    "CONTENT_TYPE_OTHER",
]
SourceType = Literal["SOURCE_ARTICLE_16", "SOURCE_TRUSTED_FLAGGER", "SOURCE_TYPE_OTHER_NOTIFICATION", "SOURCE_VOLUNTARY"]
AutomatedDecision = Literal["AUTOMATED_DECISION_FULLY", "AUTOMATED_DECISION_PARTIALLY", "AUTOMATED_DECISION_NOT_AUTOMATED"]
Country = Literal[
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IS",
    "IT", "LI", "LT", "LU", "LV", "MT", "NL", "NO", "PL", "PT", "RO", "SE", "SI", "SK",
]  # fmt: skip

EEA: tuple[Country, ...] = get_args(Country)
"""Countries of the European Economic Area."""
EU: tuple[Country, ...] = tuple(country for country in EEA if country not in ("IS", "LI", "NO"))
"""Member States of the European Union."""
OFFICIAL_LANGUAGES = (
    "bg", "cs", "da", "de", "el", "en", "es", "et", "fi", "fr", "ga", "hr",
    "hu", "it", "lt", "lv", "mt", "nl", "pl", "pt", "ro", "sk", "sl", "sv",
)  # fmt: skip
"""Official languages of the Union, the scopes of Article 42(2)(c)."""


class Category(NamedTuple):
    """Category of the templates: its meaning, and the code of each sub-category with its meaning, without :data:`OTHER`."""

    description: str
    subcategories: Mapping[str, str]


TERMS_ONLY = "STATEMENT_CATEGORY_OTHER_VIOLATION_TC"
"""The category that no illegal content has: table 5 of the template lacks it."""

CATEGORIES: Mapping[str, Category] = {
    "STATEMENT_CATEGORY_ANIMAL_WELFARE": Category(
        "Animal welfare",
        {"KEYWORD_ANIMAL_HARM": "Animal harm", "KEYWORD_UNLAWFUL_SALE_ANIMALS": "Unlawful sale of animals"},
    ),
    "STATEMENT_CATEGORY_CONSUMER_INFORMATION": Category(
        "Consumer information infringements",
        {
            "KEYWORD_HIDDEN_ADVERTISEMENT": "Hidden advertisement or commercial communication, including by influencers",
            "KEYWORD_INSUFFICIENT_INFORMATION_ON_TRADERS": "Insufficient information on traders",
            "KEYWORD_MISLEADING_INFO_GOODS_SERVICES": (
                "Misleading information about the characteristics of the goods and services"
            ),
            "KEYWORD_MISLEADING_INFO_CONSUMER_RIGHTS": "Misleading information about the consumer's rights",
            "KEYWORD_NONCOMPLIANCE_PRICING": "Non-compliance with pricing regulations",
        },
    ),
    "STATEMENT_CATEGORY_CYBER_VIOLENCE": Category(
        "Cyber violence",
        {
            "KEYWORD_CYBER_BULLYING_INTIMIDATION": "Cyber bullying and intimidation",
            "KEYWORD_CYBER_HARASSMENT": "Cyber harassment",
            "KEYWORD_CYBER_INCITEMENT": "Cyber incitement to hatred or violence",
            "KEYWORD_CYBER_STALKING": "Cyber stalking",
            "KEYWORD_NON_CONSENSUAL_IMAGE_SHARING": (
                "Non-consensual (intimate) material sharing, including (image-based) sexual abuse (excluding "
                "content depicting minors)"
            ),
            "KEYWORD_NON_CONSENSUAL_MATERIAL_DEEPFAKE": (
                "Non-consensual sharing of material containing deepfake or similar technology using a third "
                "party's features (excluding content depicting minors)"
            ),
        },
    ),
    "STATEMENT_CATEGORY_CYBER_VIOLENCE_AGAINST_WOMEN": Category(
        "Cyber violence against women",
        {
            "KEYWORD_BULLYING_AGAINST_GIRLS": "Cyber bullying and intimidation against girls",
            "KEYWORD_CYBER_HARASSMENT_AGAINST_WOMEN": "Cyber harassment against women",
            "KEYWORD_CYBER_STALKING_AGAINST_WOMEN": "Cyber stalking against women",
            "KEYWORD_FEMALE_GENDERED_DISINFORMATION": "Gendered disinformation",
            "KEYWORD_INCITEMENT_AGAINST_WOMEN": "Illegal incitement to violence and hatred against women",
            "KEYWORD_NON_CONSENSUAL_IMAGE_SHARING_AGAINST_WOMEN": (
                "Non-consensual (intimate) material sharing against women, including (image-based) sexual abuse "
                "against women (excluding content depicting minors)"
            ),
            "KEYWORD_NON_CONSENSUAL_MATERIAL_DEEPFAKE_AGAINST_WOMEN": (
                "Non-consensual sharing of material containing deepfake or similar technology using a third "
                "party's features against women (excluding content depicting minors)"
            ),
        },
    ),
    "STATEMENT_CATEGORY_DATA_PROTECTION_AND_PRIVACY_VIOLATIONS": Category(
        "Data protection and privacy violations",
        {
            "KEYWORD_BIOMETRIC_DATA_BREACH": "Biometric data breach",
            "KEYWORD_DATA_FALSIFICATION": "Data falsification",
            "KEYWORD_MISSING_PROCESSING_GROUND": "Missing processing ground for data",
            "KEYWORD_RIGHT_TO_BE_FORGOTTEN": "Right to be forgotten",
        },
    ),
    "STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH": Category(
        "Illegal or harmful speech",
        {
            "KEYWORD_DEFAMATION": "Defamation",
            "KEYWORD_DISCRIMINATION": "Discrimination",
            "KEYWORD_HATE_SPEECH": "Illegal incitement to violence and hatred based on protected characteristics (hate speech)",
        },
    ),
    "STATEMENT_CATEGORY_INTELLECTUAL_PROPERTY_INFRINGEMENTS": Category(
        "Intellectual property infringements",
        {
            "KEYWORD_COPYRIGHT_INFRINGEMENT": "Copyright infringements",
            "KEYWORD_DESIGN_INFRINGEMENT": "Design infringements",
            "KEYWORD_GEOGRAPHIC_INDICATIONS_INFRINGEMENT": "Geographical indications infringements",
            "KEYWORD_PATENT_INFRINGEMENT": "Patent infringements",
            "KEYWORD_TRADE_SECRET_INFRINGEMENT": "Trade secret infringements",
            "KEYWORD_TRADEMARK_INFRINGEMENT": "Trademark infringements",
        },
    ),
    "STATEMENT_CATEGORY_NEGATIVE_EFFECTS_ON_CIVIC_DISCOURSE_OR_ELECTIONS": Category(
        "Negative effects on civic discourse or elections",
        {
            "KEYWORD_MISINFORMATION_DISINFORMATION": (
                "Misinformation, disinformation, foreign information manipulation and interference"
            ),
            "KEYWORD_VIOLATION_EU_LAW": "Violation of EU law relevant to civic discourse or elections",
            "KEYWORD_VIOLATION_NATIONAL_LAW": "Violation of national law relevant to civic discourse or elections",
        },
    ),
    "STATEMENT_CATEGORY_PROTECTION_OF_MINORS": Category(
        "Protection of minors",
        {
            "KEYWORD_AGE_SPECIFIC_RESTRICTIONS_MINORS": "Age-specific restrictions concerning minors",
            "KEYWORD_CHILD_SEXUAL_ABUSE_MATERIAL": "Child sexual abuse material",
            "KEYWORD_CHILD_SEXUAL_ABUSE_MATERIAL_DEEPFAKE": (
                "Child sexual abuse material containing deepfake or similar technology"
            ),
            "KEYWORD_GROOMING_SEXUAL_ENTICEMENT_MINORS": "Grooming/sexual enticement of minors",
            "KEYWORD_UNSAFE_CHALLENGES": "Unsafe challenges",
        },
    ),
    "STATEMENT_CATEGORY_RISK_FOR_PUBLIC_SECURITY": Category(
        "Risk for public security",
        {
            "KEYWORD_ILLEGAL_ORGANIZATIONS": "Illegal organizations",
            "KEYWORD_RISK_ENVIRONMENTAL_DAMAGE": "Risk for environmental damage",
            "KEYWORD_RISK_PUBLIC_HEALTH": "Risk for public health",
            "KEYWORD_TERRORIST_CONTENT": "Terrorist content",
        },
    ),
    "STATEMENT_CATEGORY_SCAMS_AND_FRAUD": Category(
        "Scams and/or fraud",
        {
            "KEYWORD_IMPERSONATION_ACCOUNT_HIJACKING": "Impersonation or account hijacking",
            "KEYWORD_INAUTHENTIC_ACCOUNTS": "Inauthentic accounts",
            "KEYWORD_INAUTHENTIC_LISTINGS": "Inauthentic listings",
            "KEYWORD_INAUTHENTIC_USER_REVIEWS": "Inauthentic user reviews",
            "KEYWORD_PHISHING": "Phishing",
            "KEYWORD_PYRAMID_SCHEMES": "Pyramid schemes",
        },
    ),
    "STATEMENT_CATEGORY_SELF_HARM": Category(
        "Self-harm",
        {
            "KEYWORD_CONTENT_PROMOTING_EATING_DISORDERS": "Content promoting eating disorders",
            "KEYWORD_SELF_MUTILATION": "Self-mutilation",
            "KEYWORD_SUICIDE": "Suicide",
        },
    ),
    "STATEMENT_CATEGORY_UNSAFE_AND_PROHIBITED_PRODUCTS": Category(
        "Unsafe, non-compliant or prohibited products",
        {
            "KEYWORD_PROHIBITED_PRODUCTS": "Prohibited or restricted products",
            "KEYWORD_UNSAFE_PRODUCTS": "Unsafe or non-compliant products",
        },
    ),
    "STATEMENT_CATEGORY_VIOLENCE": Category(
        "Violence",
        {
            "KEYWORD_COORDINATED_HARM": "Coordinated harm",
            "KEYWORD_INCITEMENT_VIOLENCE_HATRED": "General calls or incitement to violence and/or hatred",
            "KEYWORD_HUMAN_EXPLOITATION": "Human exploitation",
            "KEYWORD_HUMAN_TRAFFICKING": "Human trafficking",
            "KEYWORD_TRAFFICKING_WOMEN_GIRLS": "Trafficking in women and girls",
        },
    ),
    TERMS_ONLY: Category(
        "Other violation of provider's terms and conditions",
        {
            "KEYWORD_ADULT_SEXUAL_MATERIAL": "Adult sexual material",
            "KEYWORD_AGE_SPECIFIC_RESTRICTIONS": "Age-specific restrictions",
            "KEYWORD_GEOGRAPHICAL_REQUIREMENTS": "Geographical requirements",
            "KEYWORD_GOODS_SERVICES_NOT_PERMITTED": "Goods/services not permitted to be offered on the platform",
            "KEYWORD_LANGUAGE_REQUIREMENTS": "Language requirements",
            "KEYWORD_NUDITY": "Nudity",
        },
    ),
}
"""Code of each category, in the order of the template."""
