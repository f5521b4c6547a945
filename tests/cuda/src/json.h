// As much of JSON as the scripts hold.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace cuda_double {

struct Json {
    enum class Kind { Null, Boolean, Number, Text, List, Object } kind = Kind::Null;
    bool boolean = false;
    double number = 0;
    // Whole numbers keep all of their digits.
    long long integer = 0;
    std::string text;
    std::vector<Json> list;
    std::map<std::string, Json> object;

    // Nothing when it is not JSON.
    static std::optional<Json> parse(const std::string& source);

    // A member, or null.
    const Json& operator[](const std::string& name) const;
    long long integer_or(long long otherwise) const { return kind == Kind::Number ? integer : otherwise; }
    bool boolean_or(bool otherwise) const { return kind == Kind::Boolean ? boolean : otherwise; }
    std::string text_or(const std::string& otherwise) const { return kind == Kind::Text ? text : otherwise; }
};

}  // namespace cuda_double
