# ruff: noqa: RUF001
"""The same four facts in twenty-one languages, a sentence each; our own words.

1. The sun rises in the east. 2. Water freezes at zero degrees. 3. A week has seven days. 4. Fish
live in water. Thai and Lao end no sentence with a mark and part sentences by a space.
"""

from __future__ import annotations

from typing import NamedTuple


class Sample(NamedTuple):
    """A language's code, the name of its script, and its four sentences."""

    language: str
    script: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentences as one paragraph, as they are printed."""
        return ("" if self.script in ("Han", "Japanese") else " ").join(self.sentences)


SAMPLES = [
    Sample(language, script, tuple(sentences.split("\n")))
    for language, script, sentences in [
        (
            "en",
            "Latin",
            "The sun rises in the east.\nWater freezes at zero degrees.\n"
            "A week has seven days.\nFish live in water.",
        ),
        (
            "de",
            "Latin",
            "Die Sonne geht im Osten auf.\nWasser gefriert bei null Grad.\n"
            "Eine Woche hat sieben Tage.\nFische leben im Wasser.",
        ),
        (
            "ru",
            "Cyrillic",
            "Солнце встаёт на востоке.\nВода замерзает при нуле градусов.\n"
            "В неделе семь дней.\nРыбы живут в воде.",
        ),
        (
            "el",
            "Greek",
            "Ο ήλιος ανατέλλει από την ανατολή.\nΤο νερό παγώνει στους μηδέν βαθμούς.\n"
            "Η εβδομάδα έχει επτά ημέρες.\nΤα ψάρια ζουν στο νερό.",
        ),
        (
            "hy",
            "Armenian",
            "Արևը ծագում է արևելքից։\nՋուրը սառչում է զրո աստիճանում։\n"
            "Շաբաթը յոթ օր ունի։\nՁուկն ապրում է ջրում։",
        ),
        (
            "ka",
            "Georgian",
            "მზე აღმოსავლეთით ამოდის.\nწყალი ნულ გრადუსზე იყინება.\n"
            "კვირაში შვიდი დღეა.\nთევზი წყალში ცხოვრობს.",
        ),
        (
            "ar",
            "Arabic",
            "تشرق الشمس من الشرق.\nيتجمد الماء عند درجة الصفر.\n"
            "في الأسبوع سبعة أيام.\nتعيش الأسماك في الماء.",
        ),
        (
            "he",
            "Hebrew",
            "השמש זורחת במזרח.\nמים קופאים באפס מעלות.\nבשבוע יש שבעה ימים.\nדגים חיים במים.",
        ),
        (
            "hi",
            "Devanagari",
            "सूर्य पूर्व में उगता है।\nपानी शून्य डिग्री पर जमता है।\n"
            "एक सप्ताह में सात दिन होते हैं।\nमछलियाँ पानी में रहती हैं।",
        ),
        (
            "bn",
            "Bengali",
            "সূর্য পূর্ব দিকে ওঠে।\nজল শূন্য ডিগ্রিতে জমে যায়।\nএক সপ্তাহে সাত দিন থাকে।\nমাছ জলে বাস করে।",
        ),
        (
            "ta",
            "Tamil",
            "சூரியன் கிழக்கில் உதிக்கிறது.\nநீர் சுழியம் டிகிரியில் உறைகிறது.\n"
            "ஒரு வாரத்தில் ஏழு நாட்கள் உள்ளன.\nமீன்கள் நீரில் வாழ்கின்றன.",
        ),
        (
            "th",
            "Thai",
            "ดวงอาทิตย์ขึ้นทางทิศตะวันออก\nน้ำแข็งตัวที่ศูนย์องศา\nหนึ่งสัปดาห์มีเจ็ดวัน\nปลาอาศัยอยู่ในน้ำ",
        ),
        (
            "lo",
            "Lao",
            "ຕາເວັນຂຶ້ນທາງທິດຕາເວັນອອກ\nນ້ຳກ້ອນທີ່ສູນອົງສາ\nໜຶ່ງອາທິດມີເຈັດມື້\nປາອາໄສຢູ່ໃນນ້ຳ",
        ),
        (
            "km",
            "Khmer",
            "ព្រះអាទិត្យរះនៅទិសខាងកើត។\nទឹកកកនៅសូន្យដឺក្រេ។\nមួយសប្តាហ៍មានប្រាំពីរថ្ងៃ។\nត្រីរស់នៅក្នុងទឹក។",
        ),
        (
            "my",
            "Burmese",
            "နေသည် အရှေ့ဘက်မှ ထွက်သည်။\nရေသည် သုညဒီဂရီတွင် ခဲသည်။\nတစ်ပတ်တွင် ခုနစ်ရက် ရှိသည်။\nငါးများသည် ရေထဲတွင် နေသည်။",
        ),
        (
            "bo",
            "Tibetan",
            "ཉི་མ་ཤར་ཕྱོགས་ནས་ཤར།\nཆུ་ནི་དྲོད་ཚད་ཀླད་ཀོར་ལ་འཁྱགས།\nབདུན་ཕྲག་གཅིག་ལ་ཉིན་བདུན་ཡོད།\nཉ་ཆུའི་ནང་དུ་འཚོ།",
        ),
        ("zh", "Han", "太阳从东方升起。\n水在零度结冰。\n一个星期有七天。\n鱼生活在水里。"),
        (
            "ja",
            "Japanese",
            "太陽は東から昇る。\n水は零度で凍る。\n一週間は七日ある。\n魚は水の中に住んでいる。",
        ),
        (
            "ko",
            "Hangul",
            "해는 동쪽에서 뜬다.\n물은 영도에서 언다.\n일주일은 칠 일이다.\n물고기는 물에서 산다.",
        ),
        (
            "am",
            "Ethiopic",
            "ፀሐይ በምሥራቅ ትወጣለች።\nውሃ በዜሮ ዲግሪ ይቀዘቅዛል።\nሳምንት ሰባት ቀናት አሉት።\nዓሣ በውሃ ውስጥ ይኖራል።",
        ),
        (
            "vi",
            "Latin",
            "Mặt trời mọc ở phía đông.\nNước đóng băng ở không độ.\n"
            "Một tuần có bảy ngày.\nCá sống trong nước.",
        ),
    ]
]
